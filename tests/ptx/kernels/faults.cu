// Every kernel has a planted fault that `bad` switches on, one for each check of the emulator; with bad = 0 it is
// clean.
#include <cassert>

#include "ptx.cuh"

#define KERNEL extern "C" __global__ void

KERNEL read_past_end(float* out, const float* x, int n, int bad) {
  const int i = threadIdx.x;
  if (i < n + bad) out[i % n] = x[i];
}
KERNEL write_before_start(float* out, int n, int bad) {
  const int i = static_cast<int>(threadIdx.x) - bad;
  if (i < n) out[i] = 1.0f;
}
KERNEL wrong_tensor(float* out, const float* x, long long distance, int bad) {
  out[threadIdx.x] = *(x + threadIdx.x + (bad ? distance : 0));
}
KERNEL write_read_only(float* out, float* x, int bad) { (bad ? x : out)[threadIdx.x] = 1.0f; }
KERNEL misaligned_vector(float* out, const float* x, int bad) {
  const float4 v = *reinterpret_cast<const float4*>(x + threadIdx.x * 4 + bad);
  out[threadIdx.x] = v.x + v.w;
}
KERNEL misaligned_shared(float* out, int bad) {
  __shared__ __align__(16) char bytes[264];
  *reinterpret_cast<float2*>(bytes + threadIdx.x * 8 + bad * 4) = make_float2(1.0f, 2.0f);
  out[threadIdx.x] = *reinterpret_cast<float*>(bytes + threadIdx.x * 8 + bad * 4);
}
KERNEL shared_past_end(float* out, int bad) {
  extern __shared__ float tile[];
  tile[threadIdx.x + bad] = 1.0f;
  out[threadIdx.x] = tile[threadIdx.x + bad];
}
KERNEL local_past_end(int* out, const int* x, int bad) {
  int mine[4];
  for (int i = 0; i < 4; ++i) mine[x[i] & 3] = i;
  out[threadIdx.x] = mine[(threadIdx.x & 3) + bad * 64];
}
KERNEL unwritten_shared(float* out, int bad) {
  __shared__ float tile[64];
  if (threadIdx.x < 32 || !bad) tile[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}
KERNEL unwritten_output(float* out, float* scratch, int bad) {
  if (!bad || threadIdx.x != 3) scratch[threadIdx.x] = 2.0f;
  out[threadIdx.x] = scratch[threadIdx.x];
}
KERNEL race_write_read(float* out, int bad) {
  __shared__ float tile[64];
  tile[threadIdx.x] = 0.0f;
  __syncthreads();
  tile[threadIdx.x] = threadIdx.x;
  if (!bad) __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x] + tile[threadIdx.x];
}
KERNEL race_read_write(float* out, int bad) {
  __shared__ float tile[64];
  tile[threadIdx.x] = threadIdx.x;
  __syncthreads();
  const float v = tile[63 - threadIdx.x];
  if (!bad) __syncthreads();
  tile[threadIdx.x] = v;
  out[threadIdx.x] = v;
}
KERNEL race_write_write(float* out, int bad) {
  __shared__ float tile[64];
  tile[bad ? threadIdx.x % 32 : threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x % 32];
}
KERNEL race_bytes(unsigned char* out, int bad) {  // neighbours in one word are no race, the same byte is
  __shared__ unsigned char tile[64];
  tile[threadIdx.x % 32 * 2 + (bad ? 0 : threadIdx.x / 32)] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x / 2 * 2];
}
KERNEL race_with_atomic(int* out, int bad) {
  __shared__ int sum;
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  atomicAdd(&sum, 1);
  bad ? __syncwarp() : __syncthreads();
  out[threadIdx.x] = sum;
}
KERNEL lanes_write_read(float* out, int bad) {
  __shared__ float tile[64];
  tile[threadIdx.x] = threadIdx.x;
  if (!bad) __syncwarp();
  out[threadIdx.x] = tile[threadIdx.x ^ 1];
}
KERNEL lanes_read_write(float* out, int bad) {
  __shared__ float tile[64];
  tile[threadIdx.x] = threadIdx.x;
  __syncwarp();
  const float v = tile[threadIdx.x ^ 1];
  if (!bad) __syncwarp();
  tile[threadIdx.x] = v;
  out[threadIdx.x] = v;
}
KERNEL lanes_broadcast_write(float* out, int bad) {  // lane 0 itself is among the many that have read
  __shared__ float shared[2];
  float& value = shared[threadIdx.x / 32];
  if (threadIdx.x % 32 == 0) value = 1.0f;
  __syncwarp();
  out[threadIdx.x] = value;
  if (!bad) __syncwarp();
  if (threadIdx.x % 32 == 0) value = 2.0f;
}
KERNEL lanes_write_write(float* out, int bad) {
  __shared__ float tile[64];
  tile[bad ? threadIdx.x & ~1 : threadIdx.x] = threadIdx.x;
  __syncwarp();
  out[threadIdx.x] = tile[threadIdx.x & ~1];
}
KERNEL lanes_with_atomic(int* out, int bad) {
  __shared__ int sums[2];
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = 0;
  __syncwarp();
  atomicAdd(&sums[threadIdx.x / 32], static_cast<int>(threadIdx.x));
  if (!bad) __syncwarp();
  out[threadIdx.x] = sums[threadIdx.x / 32];
}
KERNEL lanes_async(float* out, const float* x, int bad) {  // a lane has waited for its own copies only
  __shared__ __align__(16) float tile[256];
  cp_async16(tile + threadIdx.x * 4, x + threadIdx.x * 4);
  cp_async_commit();
  cp_async_wait<0>();
  if (!bad) __syncwarp();
  out[threadIdx.x] = tile[(threadIdx.x ^ 1) * 4];
}
KERNEL lanes_ldmatrix(uint32_t* out, int bad) {  // each lane writes the row whose address it gives, all lanes read it
  __shared__ __align__(16) uint4 rows[64];
  rows[threadIdx.x] = make_uint4(threadIdx.x, 1, 2, 3);
  if (!bad) __syncwarp();
  uint32_t r[4];
  ldmatrix_x4(r, rows + threadIdx.x);
  out[threadIdx.x] = r[0] + r[1] + r[2] + r[3];
}
KERNEL race_named_barrier(int* out, int bad) {  // warps 0, 1 share a barrier; what warp 2 wrote is not ordered by it
  __shared__ int tile[96];
  tile[threadIdx.x] = 0;
  __syncthreads();
  tile[threadIdx.x] = threadIdx.x;
  if (threadIdx.x < 64) {
    asm volatile("bar.sync 1, 64;" ::: "memory");
    out[threadIdx.x] = tile[bad ? threadIdx.x + 32 : (threadIdx.x + 32) % 64];
  } else {
    out[threadIdx.x] = 0;
  }
}
KERNEL async_without_wait(float* out, const float* x, int bad) {
  __shared__ __align__(16) float tile[128];
  cp_async16(tile + threadIdx.x * 4, x + threadIdx.x * 4);
  cp_async_commit();
  if (!bad) cp_async_wait<0>();
  out[threadIdx.x] = tile[threadIdx.x * 4];
}
KERNEL async_wait_too_few(float* out, const float* x, int bad) {
  __shared__ __align__(16) float tile[2][128];
  for (int s = 0; s < 2; ++s) {
    cp_async16(tile[s] + threadIdx.x * 4, x + s * 128 + threadIdx.x * 4);
    cp_async_commit();
  }
  cp_async_wait<1>();
  out[threadIdx.x] = tile[bad][threadIdx.x * 4];
}
KERNEL async_without_barrier(float* out, const float* x, int bad) {
  __shared__ __align__(16) float tile[256];
  for (int i = threadIdx.x; i < 256; i += 64) tile[i] = 0.0f;
  __syncthreads();
  cp_async16(tile + threadIdx.x * 4, x + threadIdx.x * 4);
  cp_async_commit();
  cp_async_wait<0>();
  if (!bad) __syncthreads();
  out[threadIdx.x] = tile[(63 - threadIdx.x) * 4];
}
KERNEL divergent_barrier(float* out, int bad) {
  if (threadIdx.x < 32 + (bad ? 7 : 0)) {
    asm volatile("bar.sync 1, 64;" ::: "memory");
  } else if (!bad) {
    asm volatile("bar.sync 1, 64;" ::: "memory");
  }
  out[threadIdx.x] = 1.0f;
}
KERNEL deadlock(float* out, int bad) {
  if (threadIdx.x < 32) {
    asm volatile("bar.sync 1, 64;" ::: "memory");
  } else {
    asm volatile("bar.sync %0, 64;" ::"r"(1 + bad) : "memory");
  }
  out[threadIdx.x] = 1.0f;
}
KERNEL hang(volatile int* flag, int bad) {
  while (bad && *flag == 0) {
  }
  flag[1] = 1;
}
KERNEL absent_lane(int* out, int bad) {
  int v = threadIdx.x;
  if (threadIdx.x < 16 || !bad) v = __shfl_xor_sync(~0u, v, 1);
  out[threadIdx.x] = v;
}
KERNEL exited_lane(int* out, int n, int bad) {
  out[threadIdx.x] = 0;
  if (bad && threadIdx.x >= n) return;
  out[threadIdx.x] = __ballot_sync(~0u, threadIdx.x & 1);
}
KERNEL trapped(int* out, int bad) {
  if (bad && threadIdx.x == 9) __trap();
  out[threadIdx.x] = 1;
}
KERNEL asserted(int* out, const int* x) {
  assert(x[threadIdx.x] > 0);
  out[threadIdx.x] = 1;
}
KERNEL __launch_bounds__(64) bounded(float* out) { out[threadIdx.x] = 1.0f; }
KERNEL uses_shared(float* out) {
  extern __shared__ float tile[];
  tile[threadIdx.x] = 1.0f;
  out[threadIdx.x] = tile[threadIdx.x];
}
// More than 64 live values per thread: 1024 threads of it need more registers than an SM has.
template <int kCount>
__device__ void many_registers(float* out, const float* x) {
  float v[kCount];
  for (int i = 0; i < kCount; ++i) v[i] = x[threadIdx.x + i];
  for (int i = 0; i < kCount; ++i) v[i] = v[i] * v[(i * 7 + 3) % kCount] + v[(i * 5 + 1) % kCount];
  for (int i = 0; i < kCount; ++i) out[i * 1024 + threadIdx.x] = v[i] * v[kCount - 1 - i];
}
KERNEL register_hungry(float* out, const float* x) { many_registers<100>(out, x); }
