// A CUDA driver, cuBLAS and cuRAND that compute nothing: memory is the host's, all that comes back is zero, and at the end it is said
// what was asked for: launches, uploads and waits. What candle needs to load a model and run it, and no more.
//
// Built and used by count.sh; the link shims of ../shared/cuda load it by its name.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t launches, uploads, waits;

__attribute__((destructor)) static void say(void) {
    fprintf(stderr, "driver %lu %lu %lu\n", launches, uploads, waits);
}

static int launch(void) { return launches++, 0; }
static int upload(void) { return uploads++, 0; }
static int wait(void) { return waits++, 0; }
static int download(void *to, size_t bytes) { return memset(to, 0, bytes), wait(); }
static int give(uint64_t *to, size_t bytes) { return *to = (uint64_t)calloc(1, bytes + 1), 0; }
static int handle(void **to) { return *to = &launches, 0; }

int cuInit(unsigned flags) { return 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = 0; }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
// A compute capability of 10.24 and memory pools, among others.
int cuDeviceGetAttribute(int *value, int which, int device) { return *value = which == 75 ? 10 : 1024, 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return handle(context); }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuCtxGetCurrent(void **context) { return handle(context); }
int cuCtxSynchronize(void) { return wait(); }
int cuStreamCreate(void **stream, unsigned flags) { return handle(stream); }
int cuStreamDestroy_v2(void *stream) { return 0; }
int cuStreamSynchronize(void *stream) { return wait(); }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return 0; }
int cuStreamIsCapturing(void *stream, int *status) { return *status = 0; }
int cuEventCreate(void **event, unsigned flags) { return handle(event); }
int cuEventDestroy_v2(void *event) { return 0; }
int cuEventRecord(void *event, void *stream) { return 0; }
int cuEventSynchronize(void *event) { return wait(); }
int cuMemAllocAsync(uint64_t *to, size_t bytes, void *stream) { return give(to, bytes); }
int cuMemAlloc_v2(uint64_t *to, size_t bytes) { return give(to, bytes); }
int cuMemFreeAsync(uint64_t at, void *stream) { return free((void *)at), 0; }
int cuMemFree_v2(uint64_t at) { return free((void *)at), 0; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) { return upload(); }
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) { return upload(); }
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) { return download(to, bytes); }
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) { return download(to, bytes); }
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) { return launch(); }
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream) { return launch(); }
int cuModuleLoadData(void **module, const void *image) { return handle(module); }
int cuModuleGetFunction(void **function, void *module, const char *name) { return handle(function); }
int cuModuleUnload(void *module) { return 0; }
int cuFuncSetAttribute(void *function, int which, int value) { return 0; }
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **parameters, void **extra) {
    return launch();
}

int cublasCreate_v2(void **blas) { return handle(blas); }
int cublasDestroy_v2(void *blas) { return 0; }
int cublasSetStream_v2(void *blas, void *stream) { return 0; }
int cublasGemmStridedBatchedEx(void) { return launch(); }
int cublasSgemmStridedBatched(void) { return launch(); }

int curandCreateGenerator(void **generator, int kind) { return handle(generator); }
int curandDestroyGenerator(void *generator) { return 0; }
int curandSetPseudoRandomGeneratorSeed(void *generator, unsigned long long seed) { return 0; }
int curandSetStream(void *generator, void *stream) { return 0; }
