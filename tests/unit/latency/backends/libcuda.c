/* A CUDA driver, as much of it as cuda.core calls for `latency.backends.cuda`, whose GPU is the host: memory is the
 * host's, work is done when it is enqueued, and the clock ticks a millisecond with each event that is recorded. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, OUT_OF_MEMORY = 2, NO_DEVICE = 100, ILLEGAL_STATE = 401, NOT_FOUND = 500, CAPTURE_INVALIDATED = 901 };

typedef unsigned long long address;
typedef struct { int capturing; } stream;
typedef struct { int tick; unsigned flags; } event;

/* What a test sets and looks at. */
int devices = 1, pools = 1, capture_fails, live, launched, event_flags, stream_flags = -1, capture_mode;

static int ticks;
static char context, pool, graph, executable;
static void *current;

static const char *name_of(int code) {
  switch (code) {
    case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
    case NO_DEVICE: return "CUDA_ERROR_NO_DEVICE";
    case CAPTURE_INVALIDATED: return "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED";
    default: return "CUDA_ERROR_UNKNOWN";
  }
}

int cuGetProcAddress_v2(const char *name, void **function, int version, address flags, int *status) {
  char versioned[128];
  void *self = dlopen("libcuda.so.1", RTLD_NOLOAD | RTLD_NOW);
  *function = NULL;
  for (int number = 3; number > 1 && !*function; number--) {
    snprintf(versioned, sizeof versioned, "%s_v%d", name, number);
    *function = dlsym(self, versioned);
  }
  if (!*function) *function = dlsym(self, name);
  if (status) *status = *function ? 0 : 1;
  return *function ? OK : NOT_FOUND;
}

int cuInit(unsigned flags) { return devices ? OK : NO_DEVICE; }
int cuDriverGetVersion(int *version) { *version = 13040; return OK; }
int cuGetErrorName(int code, const char **text) { *text = name_of(code); return OK; }
int cuGetErrorString(int code, const char **text) { *text = name_of(code); return OK; }

int cuDeviceGet(int *device, int number) { *device = number; return OK; }
int cuDeviceGetCount(int *count) { *count = devices; return OK; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "Host"); return OK; }
int cuDeviceTotalMem_v2(size_t *size, int device) { *size = 24ull << 30; return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 9 : attribute == 115 ? pools : 0; /* capability 8.9; pools */
  return OK;
}

int cuDevicePrimaryCtxRetain(void **made, int device) { *made = &context; return OK; }
int cuDevicePrimaryCtxRelease_v2(int device) { return OK; }
int cuCtxGetCurrent(void **found) { *found = current; return OK; }
int cuCtxSetCurrent(void *chosen) { current = chosen; return OK; }
int cuCtxGetDevice(int *device) { *device = 0; return OK; }
int cuCtxGetStreamPriorityRange(int *least, int *greatest) { *least = *greatest = 0; return OK; }

int cuStreamCreateWithPriority(stream **made, unsigned flags, int priority) {
  stream_flags = flags;
  live++;
  *made = calloc(1, sizeof **made);
  return OK;
}
int cuStreamDestroy_v2(stream *old) { live--; free(old); return OK; }
int cuStreamSynchronize(stream *on) { return OK; }
int cuStreamGetCtx(stream *on, void **found) { *found = &context; return OK; }
int cuStreamIsCapturing(stream *on, int *state) { *state = (address)on > 2 && on->capturing; return OK; }
int cuStreamBeginCapture_v2(stream *on, int mode) { capture_mode = mode; on->capturing = 1; return OK; }
int cuStreamEndCapture(stream *on, void **made) {
  *made = NULL;
  if (!on->capturing) return ILLEGAL_STATE;
  on->capturing = 0;
  *made = capture_fails ? NULL : &graph;
  return capture_fails ? CAPTURE_INVALIDATED : OK;
}
int cuStreamGetCaptureInfo_v3(stream *on, int *state, address *id, void **into, void ***last, void ***edges, size_t *n) {
  *state = (address)on > 2 && on->capturing;
  return OK;
}

int cuUserObjectCreate(void **made, void *of, void *release, unsigned count, unsigned flags) { *made = of; return OK; }
int cuUserObjectRelease(void *of, unsigned count) { return OK; }
int cuUserObjectRetain(void *of, unsigned count) { return OK; }
int cuGraphReleaseUserObject(void *from, void *of, unsigned count) { return OK; }
int cuGraphGetId(void *of, unsigned *number) { *number = 1; return OK; }
int cuGraphGetNodes(void *of, void **nodes, size_t *count) { *count = 0; return OK; }
int cuGraphRetainUserObject(void *in, void *of, unsigned count, unsigned flags) { return OK; }
int cuGraphInstantiateWithParams(void **made, void *of, void *options) { live++; *made = &executable; return OK; }
int cuGraphDestroy(void *old) { return OK; }
int cuGraphExecDestroy(void *old) { live--; return OK; }
int cuGraphLaunch(void *of, stream *on) { launched++; return OK; }

int cuEventCreate(event **made, unsigned flags) {
  event_flags = flags;
  live++;
  *made = calloc(1, sizeof **made);
  return OK;
}
int cuEventDestroy_v2(event *old) { live--; free(old); return OK; }
int cuEventRecord(event *at, stream *on) { at->tick = ticks++; return OK; }
int cuEventSynchronize(event *at) { return OK; }
int cuEventElapsedTime_v2(float *ms, event *start, event *end) { *ms = end->tick - start->tick; return OK; }

int cuMemAlloc_v2(address *made, size_t size) {
  if (size >> 40) return OUT_OF_MEMORY;
  live++;
  *made = (address)malloc(size);
  return OK;
}
int cuMemFree_v2(address old) { live--; free((void *)old); return OK; }
int cuMemAllocFromPoolAsync(address *made, size_t size, void *from, stream *on) { return cuMemAlloc_v2(made, size); }
int cuMemFreeAsync(address old, stream *on) { return cuMemFree_v2(old); }
int cuDeviceGetMemPool(void **found, int device) { *found = &pool; return OK; }
int cuDeviceGetDefaultMemPool(void **found, int device) { *found = &pool; return OK; }
int cuMemGetMemPool(void **found, void *place, int kind) { *found = &pool; return OK; }
int cuMemPoolGetAttribute(void *of, int attribute, address *value) { *value = ~0ull; return OK; }
int cuMemPoolSetAttribute(void *of, int attribute, address *value) { return OK; }
int cuMemcpyAsync(address to, address from, size_t size, stream *on) {
  memcpy((void *)to, (void *)from, size);
  return OK;
}
