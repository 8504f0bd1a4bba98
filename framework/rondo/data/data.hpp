#pragma once

#include "rondo/data/batch.hpp"
#include "rondo/data/collate.hpp"
#include "rondo/data/example.hpp"
#include "rondo/data/idx.hpp"
#include "rondo/data/mnist.hpp"
#include "rondo/data/random.hpp"
#include "rondo/data/shuffle.hpp"
#include "rondo/data/stage.hpp"
#include "rondo/data/take.hpp"
#include "rondo/data/tensor_dataset.hpp"
#include "rondo/data/transform.hpp"
