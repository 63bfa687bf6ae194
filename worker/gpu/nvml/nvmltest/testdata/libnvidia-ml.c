/* A libnvidia-ml.so.1 with two GPUs and the functions that worker/gpu/nvml
 * calls, as nvml.h declares them. What happens on the GPUs is in the
 * environment:
 *
 *   FAKE_NVML_SCRIPT     events in order: "0:31,1:79,0:lost"; GPU 0 has Xid 31,
 *                        GPU 1 Xid 79, then GPU 0 is lost
 *   FAKE_NVML_INIT       what nvmlInit_v2 returns
 *   FAKE_NVML_SUPPORTED  the mask of supported events, by default Xids alone
 *   FAKE_NVML_MIG        1: the GPUs are in MIG mode
 *
 * Built with -DOLD it is a driver that has no nvmlEventSetWait_v2.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int nvmlReturn_t;
enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TIMEOUT = 10, GPU_IS_LOST = 15 };
enum { XID_CRITICAL_ERROR = 8, GPUS = 2 };

typedef struct nvmlDevice_st { const char *uuid; int lost; } *nvmlDevice_t;
typedef struct nvmlEventSet_st { int registered[GPUS]; } *nvmlEventSet_t;
typedef struct {
    nvmlDevice_t device;
    unsigned long long eventType, eventData;
    unsigned int gpuInstanceId, computeInstanceId;
} nvmlEventData_t;

static struct nvmlDevice_st gpus[GPUS] = {{"GPU-fake-0", 0}, {"GPU-fake-1", 0}};
static const char *script;

static long setting(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value ? strtol(value, NULL, 10) : otherwise;
}

nvmlReturn_t nvmlInit_v2(void) {
    script = getenv("FAKE_NVML_SCRIPT");
    return setting("FAKE_NVML_INIT", SUCCESS);
}

nvmlReturn_t nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(nvmlReturn_t result) { return result == 9 ? "Driver Not Loaded" : "an error of the fake"; }

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = GPUS;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    if (index >= GPUS) return INVALID_ARGUMENT;
    *device = &gpus[index];
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    for (int i = 0; i < GPUS; i++)
        if (strcmp(uuid, gpus[i].uuid) == 0) return nvmlDeviceGetHandleByIndex_v2(i, device);
    return NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length) {
    snprintf(uuid, length, "%s", device->uuid);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending) {
    (void)device;
    *current = *pending = setting("FAKE_NVML_MIG", 0);
    return *current ? SUCCESS : NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types) {
    *types = setting("FAKE_NVML_SUPPORTED", XID_CRITICAL_ERROR);
    return device->lost ? GPU_IS_LOST : SUCCESS;
}

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) {
    *set = calloc(1, sizeof **set);
    return SUCCESS;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
    free(set);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set) {
    if (types != XID_CRITICAL_ERROR) return INVALID_ARGUMENT;
    if (device->lost) return GPU_IS_LOST;
    set->registered[device - gpus] = 1;
    return SUCCESS;
}

#ifndef OLD
nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeoutms) {
    while (script && *script) {
        int gpu = *script - '0';
        const char *what = script + 2, *end = strchr(what, ',');
        script = end ? end + 1 : NULL;
        if (gpu < 0 || gpu >= GPUS || !set->registered[gpu]) continue;
        if (strncmp(what, "lost", 4) == 0) {
            gpus[gpu].lost = 1;
            return GPU_IS_LOST;
        }
        *data = (nvmlEventData_t){&gpus[gpu], XID_CRITICAL_ERROR, strtoull(what, NULL, 10), ~0u, ~0u};
        return SUCCESS;
    }
    poll(NULL, 0, timeoutms);
    return TIMEOUT;
}
#endif
