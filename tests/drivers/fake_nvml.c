/* A stand-in for libnvidia-ml.so.1, for the real bindings. What it says stands in the text file $FAKE_NVML_STATE, read at every call, one
 * device a line: name total used own temperature milliwatts limit throttles errors pending. A line that begins with "lost" is a device that
 * answers GPU_IS_LOST; a value of -1 is one that the device does not support. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long long u64;
struct row { char name[64]; long long v[9]; int is_lost; };
enum { TOTAL, USED, OWN, TEMPERATURE, POWER, LIMIT, THROTTLES, ERRORS, PENDING };
static struct row rows[16];

static int load(void) {
  const char *path = getenv("FAKE_NVML_STATE");
  FILE *file = fopen(path ? path : "", "r");
  char line[512];
  int num = 0;
  if (!file) return -1;
  while (num < 16 && fgets(line, sizeof line, file)) {
    struct row *r = &rows[num];
    long long *v = r->v;
    r->is_lost = !strncmp(line, "lost", 4);
    num += sscanf(line + (r->is_lost ? 5 : 0), "%63s %lld %lld %lld %lld %lld %lld %lld %lld %lld", r->name, v, v + 1, v + 2, v + 3, v + 4,
                  v + 5, v + 6, v + 7, v + 8) == 10;
  }
  fclose(file);
  return num;
}

#define GET(field)                                          \
  int num = load();                                         \
  long i = (long)device - 1;                                \
  if (num < 0) return 9;                                    \
  if (i < 0 || i >= num) return 2;                          \
  if (rows[i].is_lost) return 15;                           \
  long long value = rows[i].v[field];                       \
  if (value < 0) return 3;                                  \
  (void)value;

int nvmlInitWithFlags(unsigned flags) { (void)flags; return load() < 0 ? 9 : 0; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : code == 9 ? "Driver Not Loaded" : "fake error"; }
int nvmlDeviceGetCount_v2(unsigned *count) { int num = load(); if (num < 0) return 9; *count = num; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **device) { if ((int)i >= load()) return 2; *device = (void *)(long)(i + 1); return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  long i;
  return sscanf(uuid, "GPU-%ld", &i) == 1 ? nvmlDeviceGetHandleByIndex_v2(i, device) : 6;
}
int nvmlSystemGetDriverVersion(char *text, unsigned size) { snprintf(text, size, "999.fake"); return 0; }
int nvmlDeviceGetName(void *device, char *text, unsigned size) { GET(TOTAL) snprintf(text, size, "%s", rows[i].name); return 0; }
int nvmlDeviceGetUUID(void *device, char *text, unsigned size) { GET(TOTAL) snprintf(text, size, "GPU-%ld", i); return 0; }
struct memory { u64 total, free, used; };
int nvmlDeviceGetMemoryInfo(void *device, struct memory *out) {
  GET(TOTAL)
  out->total = rows[i].v[TOTAL], out->used = rows[i].v[USED], out->free = out->total - out->used;
  return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) { GET(TOTAL) *major = 9, *minor = 0; return 0; }
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *out) { (void)sensor; GET(TEMPERATURE) *out = value; return 0; }
int nvmlDeviceGetPowerUsage(void *device, unsigned *out) { GET(POWER) *out = value; return 0; }
int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *out) { GET(LIMIT) *out = value; return 0; }
int nvmlDeviceGetCurrentClocksEventReasons(void *device, u64 *out) { GET(THROTTLES) *out = value; return 0; }
int nvmlDeviceGetTotalEccErrors(void *device, int kind, int counter, u64 *out) { (void)kind, (void)counter; GET(ERRORS) *out = value; return 0; }
int nvmlDeviceGetRemappedRows(void *device, unsigned *a, unsigned *b, unsigned *pending, unsigned *failed) {
  GET(PENDING) *a = *b = *failed = 0, *pending = value;
  return 0;
}
struct process { unsigned pid; u64 used; unsigned instance, compute; };
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct process *out) {
  GET(OWN)
  if (*count < 2) { *count = 2; return 7; }
  out[0] = (struct process){getpid(), value, 0, 0}, out[1] = (struct process){1, 5, 0, 0};
  *count = 2;
  return 0;
}
