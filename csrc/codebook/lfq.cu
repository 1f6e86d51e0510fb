// Placeholder until the first kernel: proves that CUDA sources compile and link.
#include "common/cuda_check.h"
