/* A stand-in for the NVIDIA driver's libnvidia-ml.so.1: the functions that autoft asks, answering a scripted scenario.
 *
 * FAKE_NVML        laptop | two | none | broken | mute | blind   (the scenario)
 * FAKE_NVML_PID    process that computes on the laptop's GPU
 * FAKE_NVML_LOG    file that gets a line when the library is shut down
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9 };

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu_instance, compute_instance; } Process;
typedef struct { const char *name, *uuid; unsigned long long total_mib, free_mib; int major, minor; unsigned gen, width; } Card;

static Card laptop = {"NVIDIA GeForce RTX 3060 Laptop GPU", "GPU-aaaa1111-0000-0000-0000-000000000001", 6144, 5000, 8, 6, 4, 16};
static Card big = {"NVIDIA GeForce RTX 4090", "GPU-aabb2222-0000-0000-0000-000000000002", 24564, 24081, 8, 9, 1, 8};
static Card old = {"NVIDIA GeForce GTX 1080 Ti", "GPU-cccc3333-0000-0000-0000-000000000003", 11264, 11000, 6, 1, 3, 16};

static int is(const char *scenario) {
    const char *chosen = getenv("FAKE_NVML");
    return chosen && !strcmp(chosen, scenario);
}

static int text(char *out, unsigned size, const char *value) {
    snprintf(out, size, "%s", value);
    return OK;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return is("broken") ? DRIVER_NOT_LOADED : OK; }

int nvmlShutdown(void) {
    const char *path = getenv("FAKE_NVML_LOG");
    FILE *log = path ? fopen(path, "a") : NULL;
    if (log) { fputs("shutdown\n", log); fclose(log); }
    return OK;
}

const char *nvmlErrorString(int code) {
    switch (code) {
        case DRIVER_NOT_LOADED: return "Driver Not Loaded";
        case NOT_SUPPORTED: return "Not Supported";
        default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *out, unsigned size) { return is("mute") ? NOT_SUPPORTED : text(out, size, "550.54.14"); }
int nvmlSystemGetCudaDriverVersion(int *out) { *out = 12040; return is("mute") ? NOT_SUPPORTED : OK; }
int nvmlDeviceGetCount_v2(unsigned *out) { *out = is("none") ? 0 : is("two") ? 2 : 1; return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Card **out) {
    if (index > (is("two") ? 1u : 0u)) return INVALID_ARGUMENT;
    *out = !is("two") ? &laptop : index ? &old : &big;
    return OK;
}

int nvmlDeviceGetName(Card *card, char *out, unsigned size) { return is("mute") ? NOT_SUPPORTED : text(out, size, card->name); }
int nvmlDeviceGetUUID(Card *card, char *out, unsigned size) { return is("mute") ? NOT_SUPPORTED : text(out, size, card->uuid); }

int nvmlDeviceGetMemoryInfo(Card *card, Memory *out) {
    out->total = card->total_mib << 20;
    out->free = card->free_mib << 20;
    out->used = out->total - out->free;
    return is("blind") ? NOT_SUPPORTED : OK;
}

int nvmlDeviceGetCudaComputeCapability(Card *card, int *major, int *minor) {
    *major = card->major;
    *minor = card->minor;
    return is("mute") ? NOT_SUPPORTED : OK;
}

int nvmlDeviceGetCurrPcieLinkGeneration(Card *card, unsigned *out) { *out = card->gen; return is("mute") ? NOT_SUPPORTED : OK; }
int nvmlDeviceGetCurrPcieLinkWidth(Card *card, unsigned *out) { *out = card->width; return is("mute") ? NOT_SUPPORTED : OK; }

static int list(unsigned *count, Process *out, Process *processes, unsigned length) {
    if (is("mute")) return NOT_SUPPORTED;
    if (!is("laptop")) length = 0;
    if (*count < length) { *count = length; return INSUFFICIENT_SIZE; }
    if (length) memcpy(out, processes, length * sizeof *processes);
    *count = length;
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Card *card, unsigned *count, Process *out) {
    const char *pid = getenv("FAKE_NVML_PID");
    Process processes[] = {{pid ? (unsigned)atoi(pid) : 1u, 900ull << 20, 0, 0}};
    (void)card;
    return list(count, out, processes, 1);
}

/* The same process draws too; a second one is gone by now, and the driver does not tell its size. */
int nvmlDeviceGetGraphicsRunningProcesses_v3(Card *card, unsigned *count, Process *out) {
    const char *pid = getenv("FAKE_NVML_PID");
    Process processes[] = {{pid ? (unsigned)atoi(pid) : 1u, 900ull << 20, 0, 0}, {999999999u, ~0ull, 0, 0}};
    (void)card;
    return list(count, out, processes, 2);
}
