/* The calls of the CUDA runtime whose answers torch looks at: one device, like an H100 of 80 GB.
 *
 * All others do nothing and succeed (pretended.py generates them): no kernel is ever started, because every
 * tensor on the device is a FakeTensor. */
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

#define MEMORY (80ull << 30)

cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
  memset(found, 0, sizeof *found);
  strcpy(found->name, "pretended H100");
  found->totalGlobalMem = MEMORY;
  found->major = 9; /* which attention is chosen depends on it */
  found->multiProcessorCount = 132;
  found->warpSize = 32;
  found->maxThreadsPerMultiProcessor = 2048;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *left, size_t *total) { *left = *total = MEMORY; return cudaSuccess; }

/* Page-locked memory, too, is memory. */
cudaError_t cudaMalloc(void **memory, size_t size) {
  return (*memory = malloc(size)) ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaHostAlloc(void **memory, size_t size, unsigned flags) { return cudaMalloc(memory, size); }
cudaError_t cudaFree(void *memory) { free(memory); return cudaSuccess; }
cudaError_t cudaFreeHost(void *memory) { return cudaFree(memory); }
