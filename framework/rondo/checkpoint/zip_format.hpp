#pragma once

#include <cstddef>
#include <cstdint>

/// Numbers of the zip format. Source: PKWARE's APPNOTE.TXT, sections 4.3 to 4.5.
namespace rondo::checkpoint::zip {

inline constexpr std::uint32_t local_header_signature = 0x04034b50;
inline constexpr std::uint32_t data_descriptor_signature = 0x08074b50;
inline constexpr std::uint32_t directory_entry_signature = 0x02014b50;
inline constexpr std::uint32_t end64_signature = 0x06064b50;
inline constexpr std::uint32_t end64_locator_signature = 0x07064b50;
inline constexpr std::uint32_t end_signature = 0x06054b50;

// Fixed parts, without names and extra fields.
inline constexpr std::size_t local_header_size = 30;
inline constexpr std::size_t directory_entry_size = 46;
inline constexpr std::size_t end64_size = 56;
inline constexpr std::size_t end64_locator_size = 20;
inline constexpr std::size_t end_size = 22;

// A number with all bits set stands for "see the zip64 field".
inline constexpr std::uint32_t see_zip64 = 0xffffffff;
inline constexpr std::uint16_t see_zip64_count = 0xffff;

inline constexpr std::uint16_t zip64_field = 0x0001;
inline constexpr std::uint16_t padding_field = 0x4246;  // "FB", which PyTorch pads with too
inline constexpr std::size_t extra_field_header_size = 4;

inline constexpr std::uint16_t flag_encrypted = 1u << 0;
inline constexpr std::uint16_t flag_data_descriptor = 1u << 3;
inline constexpr std::uint16_t flag_strongly_encrypted = 1u << 6;
inline constexpr std::uint16_t flag_utf8 = 1u << 11;
inline constexpr std::uint16_t flag_masked = 1u << 13;
inline constexpr std::uint16_t method_stored = 0;

inline constexpr std::uint16_t version_plain = 20;
inline constexpr std::uint16_t version_zip64 = 45;

// Midnight of 1 January 1980, the first moment there is: equal states give equal bytes.
inline constexpr std::uint16_t fixed_time = 0;
inline constexpr std::uint16_t fixed_date = 0x0021;

}  // namespace rondo::checkpoint::zip
