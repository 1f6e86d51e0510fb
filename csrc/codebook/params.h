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

// ids[r] = argmin over k of |z[r] - codebook[k]|^2, summed in float over dim in rising order. The lowest index wins a
// tie; a distance of NaN counts as infinity, so a row without any finite distance gets 0.
struct VqEncodeParams {
  const void* z;         // [num_rows, dim]
  const void* codebook;  // [num_codes, dim]
  int64_t* ids;          // [num_rows], written
  float* workspace;      // CPU only: vq_encode_workspace_size() floats

  // CUDA only: workspaces, see vq_encode_cuda_sizes().
  uint8_t* offsets;     // offset_bytes
  float* halves;        // [num_codes, dim] if dtype is f32
  float* tops;          // [splits, num_rows, 4]
  int32_t* candidates;  // [splits, num_rows, 4]

  int64_t num_rows;
  int64_t num_codes;
  int64_t dim;
  int64_t z_stride;  // between rows; within a row elements are contiguous
  int64_t codebook_stride;
  DType dtype;  // of z and codebook: f32, f16 or bf16
};

// The CPU kernel keeps the codebook as floats, transposed in blocks; whole blocks are stored.
constexpr int64_t vq_encode_workspace_size(int64_t num_codes, int64_t dim) { return (num_codes + 31) / 32 * 32 * dim; }

Status vq_encode_cpu(const VqEncodeParams& params, int num_threads);

// out[r] = codebook[ids[r]], and its gradient grad_codebook[k] = sum of grad[r] over all r with ids[r] == k.
struct CodebookLookupParams {
  const void* codebook;  // [num_codes, dim], read by forward
  void* out;             // [num_rows, dim], contiguous, written by forward
  const void* grad;      // [num_rows, dim], read by backward
  void* grad_codebook;   // [num_codes, dim], contiguous, written by backward (all of it)
  const int64_t* ids;    // [num_rows]
  float* workspace;      // [num_codes, dim], CPU backward with 16-bit floats only: sums in float

  // CUDA backward only: the positions sorted by id (stable), and where each id starts in them.
  const int64_t* order;   // [num_rows]
  const int64_t* starts;  // [num_codes + 1]

  int64_t num_rows;
  int64_t num_codes;
  int64_t dim;
  int64_t codebook_stride;  // between rows; within a row elements are contiguous
  int64_t grad_stride;
  DType dtype;
};

// An id outside [0, num_codes) is an invalid argument.
Status codebook_lookup_forward_cpu(const CodebookLookupParams& params, int num_threads);
// Adds in rising order of rows whatever the number of threads, so that the result is always the same.
Status codebook_lookup_backward_cpu(const CodebookLookupParams& params, int num_threads);

// The CUDA launchers enqueue on `stream` (a cudaStream_t) and return. They cannot look at values: an id out of range
// decodes to NaN, looks up NaN, and takes no part in the gradient.
Status lfq_encode_cuda(const LfqParams& params, void* stream);
Status lfq_decode_cuda(const LfqParams& params, void* stream);
// Rows are whole units of 16 bytes, aligned like them (channels of zeros change no distance).
Status vq_encode_cuda(const VqEncodeParams& params, void* stream);
struct VqEncodeSizes {
  int64_t splits, offset_bytes;
};
VqEncodeSizes vq_encode_cuda_sizes(int64_t num_rows, int64_t num_codes, int64_t dim, DType dtype);
Status codebook_lookup_forward_cuda(const CodebookLookupParams& params, void* stream);
Status codebook_lookup_backward_cuda(const CodebookLookupParams& params, void* stream);

}  // namespace showo
