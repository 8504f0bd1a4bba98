#pragma once

#include "rondo/precompiled.hpp"
#include "support/catch.hpp"
