// The codebook operators: lookup-free quantization (a code is the signs of its channels) and nearest-entry lookup.
// Parameter structs and launchers. Strides are in elements; every launcher checks sizes and limits and returns a
// Status.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/status.h"

namespace showo {

// ids[b, h * width + w] = offset + sum over c of (z[b, c, h, w] > 0) << (bits - 1 - c); decode writes +1 or -1 back.
struct LfqParams {
  void* z;       // [batch, bits, height, width], read by encode, written by decode
  int64_t* ids;  // [batch, height * width], contiguous; written by encode, read by decode

  int64_t batch;
  int64_t bits;
  int64_t height;
  int64_t width;
  int64_t stride_batch;  // strides of z
  int64_t stride_bit;
  int64_t stride_row;
  int64_t stride_column;

  int64_t offset;
  DType dtype;  // of z: f32, f16 or bf16
};

constexpr int64_t kMaxLfqBits = 62;

Status lfq_encode_cpu(const LfqParams& params, int num_threads);

// An id outside [offset, offset + 2^bits) is an invalid argument; nothing is promised about z then.
Status lfq_decode_cpu(const LfqParams& params, int num_threads);

}  // namespace showo
