// Small kernels, one per thing that real kernels do. tests/ptx/test_kernels.py compares each with numpy.
#include "ptx.cuh"

#define KERNEL extern "C" __global__ void

KERNEL axpy(float* y, const float* x, float a, int n) {  // tail predicate
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = a * x[i] + y[i];
}

KERNEL tree_sum(float* out, const float* x, int n) {  // shared-memory tree
  extern __shared__ float part[];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  part[threadIdx.x] = i < n ? x[i] : 0.0f;
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) out[blockIdx.x] = part[0];
}

KERNEL shuffle_sum(float* out, const float* x, int n) {  // warp shuffles, then one warp over the warps
  __shared__ float part[32];
  float v = 0.0f;
  for (int i = threadIdx.x; i < n; i += blockDim.x) v += x[i];
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x < 32) {
    v = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0.0f;
    for (int d = 16; d > 0; d /= 2) v += __shfl_down_sync(~0u, v, d);
    if (threadIdx.x == 0) *out = v;
  }
}

KERNEL collatz(int* steps, const int* start, int n) {  // lanes leave the loop at different times
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  long long v = start[i];
  int count = 0;
  while (v != 1) {
    if (v % 2 == 0) {
      v /= 2;
    } else {
      v = 3 * v + 1;
    }
    ++count;
    if (count == 500) break;
  }
  steps[i] = count;
}

// Early returns inside a branch, then a shuffle among all that are left: they must have met again.
KERNEL early_exit(int* out, const int* x) {
  const int lane = threadIdx.x;
  int v = x[lane];
  if (v > 10) {
    if (v > 100) {
      out[lane] = -1;
      return;
    }
    v += 1000;
  } else {
    v += 1;
  }
  const unsigned left = __activemask();
  out[lane] = __reduce_add_sync(left, v) + __popc(left);
}

KERNEL histogram(unsigned* out, const unsigned char* x, int n) {  // shared, then global atomics
  __shared__ unsigned bins[256];
  bins[threadIdx.x] = 0;
  __syncthreads();
  for (int i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) atomicAdd(&bins[x[i]], 1u);
  __syncthreads();
  atomicAdd(&out[threadIdx.x], bins[threadIdx.x]);
}

KERNEL float_atomics(float* sum, int* largest, unsigned long long* count, const float* x, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  atomicAdd(sum, x[i]);
  atomicMax(largest, static_cast<int>(x[i]));
  atomicAdd(count, 1ull);
}

KERNEL half2_sum(__half2* sum, __nv_bfloat162* bsum, const __half2* x, const __nv_bfloat162* b,
                 int n) {  // packed atomics
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  atomicAdd(sum, x[i]);
  atomicAdd(bsum, b[i]);
}

__noinline__ __device__ float polynomial(float x, const float* c, int n) {
  float r = 0.0f;
  for (int i = n - 1; i >= 0; --i) r = r * x + c[i];
  return r;
}
__noinline__ __device__ float twice(float x, const float* c, int n) { return polynomial(polynomial(x, c, n), c, n); }

KERNEL calls(float* out, const float* x, const float* c, int terms, int n) {  // nested calls, taken by some lanes
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  out[i] = x[i] > 0.0f ? twice(x[i], c, terms) : polynomial(x[i], c, terms);
}

KERNEL switches(int* out, const int* op, const int* a, const int* b, int n) {  // brx.idx
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int r;
  switch (op[i]) {
    case 0:
      r = a[i] + b[i];
      break;
    case 1:
      r = a[i] - b[i];
      break;
    case 2:
      r = a[i] * b[i];
      break;
    case 3:
      r = b[i] ? a[i] / b[i] : 0;
      break;
    case 4:
      r = a[i] & b[i];
      break;
    case 5:
      r = __popc(a[i]);
      break;
    case 6:
      r = __clz(b[i]);
      break;
    case 7:
      r = a[i] << (b[i] & 31);
      break;
    case 8:
      r = max(a[i], b[i]);
      break;
    default:
      r = -1;
  }
  out[i] = r;
}

KERNEL divide64(long long* q, long long* r, const long long* a, const long long* b, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  q[i] = a[i] / b[i];
  r[i] = a[i] % b[i];
}

KERNEL philox(uint4* out, unsigned seed_low, unsigned seed_high, int n) {  // Philox4x32-10, counter = index
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  uint4 c = make_uint4(i, 0, 0, 0);
  unsigned k0 = seed_low, k1 = seed_high;
  for (int round = 0; round < 10; ++round) {
    const unsigned long long p0 = 0xD2511F53ull * c.x, p1 = 0xCD9E8D57ull * c.z;
    c = make_uint4(static_cast<unsigned>(p1 >> 32) ^ c.y ^ k0, static_cast<unsigned>(p1),
                   static_cast<unsigned>(p0 >> 32) ^ c.w ^ k1, static_cast<unsigned>(p0));
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  out[i] = c;
}

// The k-th smallest of n keys by four passes over 8-bit digits, in one block.
KERNEL radix_select(unsigned* out, const unsigned* x, int n, int k) {
  __shared__ unsigned bins[256];
  __shared__ unsigned chosen, rank;
  unsigned prefix = 0;
  if (threadIdx.x == 0) rank = k;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < 256; i += blockDim.x) bins[i] = 0;
    __syncthreads();
    const unsigned high = shift == 24 ? 0 : ~0u << (shift + 8);
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
      if ((x[i] & high) == prefix) atomicAdd(&bins[x[i] >> shift & 255], 1u);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned left = rank, digit = 0;
      while (left >= bins[digit]) left -= bins[digit++];
      rank = left;
      chosen = digit;
    }
    __syncthreads();
    prefix |= chosen << shift;
  }
  if (threadIdx.x == 0) *out = prefix;
}

KERNEL transposed_load(unsigned short* out, const unsigned short* in) {  // ldmatrix.trans of an 8x8 tile
  __shared__ __align__(16) unsigned short tile[64];
  tile[threadIdx.x] = in[threadIdx.x];
  tile[threadIdx.x + 32] = in[threadIdx.x + 32];
  __syncwarp();
  unsigned r;
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(r)
               : "r"(shared_address(tile + threadIdx.x % 8 * 8)));
  out[2 * threadIdx.x] = r & 0xffff;
  out[2 * threadIdx.x + 1] = r >> 16;
}

KERNEL tf32_product(float* d, const float* a, const float* b) {  // 16x8 by 8x8, row times column
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  unsigned fa[4], fb[2];
  const float av[4] = {a[g * 8 + t], a[(g + 8) * 8 + t], a[g * 8 + t + 4], a[(g + 8) * 8 + t + 4]};
  const float bv[2] = {b[t * 8 + g], b[(t + 4) * 8 + g]};
  for (int i = 0; i < 4; ++i) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(fa[i]) : "f"(av[i]));
  for (int i = 0; i < 2; ++i) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(fb[i]) : "f"(bv[i]));
  float c[4] = {};
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
  d[g * 8 + 2 * t] = c[0], d[g * 8 + 2 * t + 1] = c[1], d[(g + 8) * 8 + 2 * t] = c[2],
                d[(g + 8) * 8 + 2 * t + 1] = c[3];
}

KERNEL zero_fill(float* out, const float* in, int n) {  // cp.async with fewer source bytes than it writes
  __shared__ __align__(16) float tile[128];
  const int valid = max(0, min(16, (n - static_cast<int>(threadIdx.x) * 4) * 4));
  cp_async_zero_fill(tile + threadIdx.x * 4, in + (valid ? threadIdx.x * 4 : 0), valid);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  for (int i = 0; i < 4; ++i) out[i * 32 + threadIdx.x] = tile[i * 32 + threadIdx.x];
}

// Two pairs of warps, each pair with a barrier of its own; block-wide predicates at the end.
KERNEL named_barriers(int* out, const int* x) {
  __shared__ int box[128];
  const int pair = threadIdx.x / 64, other = pair * 64 + (threadIdx.x + 32) % 64;
  for (int round = 0; round <= pair * 3; ++round) {
    box[threadIdx.x] = x[threadIdx.x] + round;
    asm volatile("bar.sync %0, 64;" ::"r"(pair + 1) : "memory");
    out[threadIdx.x] = box[other];
    asm volatile("bar.sync %0, 64;" ::"r"(pair + 1) : "memory");
  }
  out[128 + threadIdx.x] = __syncthreads_count(x[threadIdx.x] % 3 == 0);
  out[256 + threadIdx.x] = __syncthreads_or(x[threadIdx.x] == 77);
  out[384 + threadIdx.x] = __syncthreads_and(x[threadIdx.x] >= 0);
}

// A producer warp arrives, three consumer warps wait.
KERNEL producer(int* out, const int* x) {
  __shared__ int box[32];
  if (threadIdx.x < 32) {
    box[threadIdx.x] = x[threadIdx.x];
    asm volatile("bar.arrive 1, 128;" ::: "memory");
  } else {
    asm volatile("bar.sync 1, 128;" ::: "memory");
    out[threadIdx.x - 32] = box[threadIdx.x % 32];
  }
}

__device__ int g_ticket;
__constant__ int c_weights[4] = {1, 10, 100, 1000};

KERNEL last_block(float* out, float* partial, const float* x, int n) {  // a ticket, fences, generic pointers
  __shared__ float part[64];
  __shared__ bool last;
  float v = 0.0f;
  for (int i = blockIdx.x * 64 + threadIdx.x; i < n; i += gridDim.x * 64) v += x[i] * c_weights[i % 4];
  part[threadIdx.x] = v;
  __syncthreads();
  if (threadIdx.x == 0) {
    float sum = 0.0f;
    for (int i = 0; i < 64; ++i) sum += part[i];
    partial[blockIdx.x] = sum;
    __threadfence();
    last = atomicAdd(&g_ticket, 1) == static_cast<int>(gridDim.x) - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    volatile float* all = partial;
    float sum = 0.0f;
    for (int i = 0; i < static_cast<int>(gridDim.x); ++i) sum += all[i];
    *out = sum;
    g_ticket = 0;
  }
}

KERNEL generic_pointers(int* out, const int* x, int pick) {  // one pointer, three memories
  __shared__ int tile[32];
  int mine[4] = {1, 2, 3, 4};
  tile[threadIdx.x] = 100 + threadIdx.x;
  mine[pick & 3] += threadIdx.x;
  __syncwarp();
  const int* p = threadIdx.x % 3 == 0 ? x + threadIdx.x : threadIdx.x % 3 == 1 ? tile + threadIdx.x : mine + (pick & 3);
  out[threadIdx.x] = *p;
}
