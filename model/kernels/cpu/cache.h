// The paged cache, as the kernels see it.
//
// A page holds C tokens of each KV head in an order of its own, the one that dot products read:
// keys as [K][N / 2][C][2], values as [K][C / 2][N][2]. C and N are even.
#pragma once

#include <cstdint>

#include "bf16.h"
#include "xla/ffi/api/ffi.h"

namespace grok1 {

using Heads = xla::ffi::Buffer<xla::ffi::BF16, 3>;  // [T, H, N]
using Pages = xla::ffi::Buffer<xla::ffi::U16, 5>;   // [L, P, K, C, N], bits of bfloat16

constexpr int64_t kMostVectors = 8;  // of a head: N <= 128

// Where the keys or values of one KV head stand in one page of a layer.
struct Cache {
  bf16* data;
  int64_t pages, heads, block, size;  // P, K, C, N

  Cache(Pages buffer, int64_t layer)
      : pages(buffer.dimensions()[1]),
        heads(buffer.dimensions()[2]),
        block(buffer.dimensions()[3]),
        size(buffer.dimensions()[4]) {
    data = buffer.typed_data() + layer * pages * block * heads * size;
  }

  bf16* at(int64_t page, int64_t head) const { return data + (page * heads + head) * block * size; }
};

}  // namespace grok1
