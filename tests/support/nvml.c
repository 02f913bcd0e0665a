/* A stand-in for libnvidia-ml.so: the functions of NVML that the sensors call, with figures as an H100 under load gives
   them. GPU 0 is well, GPU 1 is throttled by heat, has memory errors, a link that is down and half its lanes, GPU 2 is lost. */
#include <string.h>

typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned long long total, free, used; } Memory;
typedef union { double d; unsigned u; unsigned long ul; unsigned long long ull; long long ll; int i; unsigned short us; } Value;
typedef struct { unsigned field, scope; long long timestamp, latency; unsigned type; int result; Value value; } Field;

enum { OK = 0, NOT_SUPPORTED = 3, LOST = 15 };
static char gpus[3];
static unsigned long long kib;
static int at(void *handle) { return (int)((char *)handle - gpus); }
#define ANSWER(handle) if (at(handle) == 2) return LOST

int nvmlInitWithFlags(unsigned flags) { return OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int error) { return error == LOST ? "GPU is lost" : "Not Supported"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = gpus + index; return OK; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) { *handle = gpus + (uuid[4] - '0'); return OK; }
int nvmlDeviceGetPowerUsage(void *handle, unsigned *milliwatts) { ANSWER(handle); *milliwatts = 655321; return OK; }
int nvmlDeviceGetUtilizationRates(void *handle, Utilization *rates) { ANSWER(handle); rates->gpu = 98; return OK; }
int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) { ANSWER(handle); memory->used = 75161927680ull; return OK; }
int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *celsius) {
  ANSWER(handle); *celsius = at(handle) ? 88 : 61; return OK;
}
int nvmlDeviceGetClockInfo(void *handle, int kind, unsigned *mhz) { ANSWER(handle); *mhz = at(handle) ? 1095 : 1755; return OK; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *handle, unsigned long long *bits) {
  ANSWER(handle); *bits = at(handle) ? 0x44 : 0x04; return OK;
}
int nvmlDeviceGetCurrentClocksEventReasons(void *handle, unsigned long long *bits) {
  return nvmlDeviceGetCurrentClocksThrottleReasons(handle, bits);
}
int nvmlDeviceGetTotalEccErrors(void *handle, int kind, int counter, unsigned long long *count) {
  ANSWER(handle); *count = at(handle) ? 2 : 0; return OK;
}
int nvmlDeviceGetPcieThroughput(void *handle, int counter, unsigned *kb) { ANSWER(handle); *kb = 1500; return OK; }
int nvmlDeviceGetFieldValues(void *handle, int count, Field *fields) {
  ANSWER(handle);
  for (int i = 0; i < count; i++) {
    fields[i].result = at(handle) ? NOT_SUPPORTED : OK;
    fields[i].value.ull = kib += 1000000;
  }
  return OK;
}
int nvmlSystemGetDriverVersion(char *version, unsigned length) { strncpy(version, "570.86.15", length); return OK; }
int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
  ANSWER(handle); strncpy(name, "NVIDIA H100 80GB HBM3", length); return OK;
}
int nvmlDeviceGetMaxClockInfo(void *handle, int kind, unsigned *mhz) { ANSWER(handle); *mhz = 1980; return OK; }
int nvmlDeviceGetCurrPcieLinkGeneration(void *handle, unsigned *generation) { ANSWER(handle); *generation = 5; return OK; }
int nvmlDeviceGetMaxPcieLinkGeneration(void *handle, unsigned *generation) { ANSWER(handle); *generation = 5; return OK; }
int nvmlDeviceGetCurrPcieLinkWidth(void *handle, unsigned *lanes) { ANSWER(handle); *lanes = at(handle) ? 8 : 16; return OK; }
int nvmlDeviceGetMaxPcieLinkWidth(void *handle, unsigned *lanes) { ANSWER(handle); *lanes = 16; return OK; }
int nvmlDeviceGetNvLinkState(void *handle, unsigned link, unsigned *state) {
  ANSWER(handle); *state = !(at(handle) && link == 3); return OK;
}
