/* A stand-in for the NVIDIA driver's libnvidia-ml.so.1: the functions that autoft asks, answering a scripted scenario.
 *
 * FAKE_NVML            the scenario:
 *   laptop  one GPU         two    4090 and 1080 Ti      mixed  the same cards, the slower one first on the bus
 *   mig     an A100 in MIG mode, and a 1080 Ti           bare   an A100 in MIG mode without an instance
 *   linked  two A100s joined by NVLink, and a switch     spark  a GB10, which has no memory of its own
 *   none    no GPU          broken does not start        hang   does not come back from its start
 *   stuck   does not come back from one question         crash  ends the process at its start
 *   mute    tells of nothing but memory                  blind  does not tell of memory
 *   lost    "GPU is lost" to every question but the name forbidden  gives no handle
 *   empty   says 0 bytes    garbage  a name that is no UTF-8, and codes that nobody knows
 * FAKE_NVML_DRIVER     the driver's version
 * FAKE_NVML_PROCESSES  "KIND PID MIB;..." with KIND c, g or b (both lists), MIB -1 where the driver does not tell
 * FAKE_NVML_LOG        file that gets a line when the library is shut down
 *
 * With -DOLD_DRIVER it lacks what came later than R470.
 */
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    OK = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, NOBODY_KNOWS = 777,
};

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu_instance, compute_instance; } Process;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct {
    unsigned multiprocessors, copy, decoder, encoder, jpeg, ofa, gpu_slices, compute_slices;
    unsigned long long memory_mib;
} Attributes;

typedef struct Card {
    const char *name, *uuid, *bus_id;
    unsigned long long total_mib, free_mib;
    int major, minor;
    unsigned gen, width, cores, clock, mig, gpu_instance, compute_instance, multiprocessors;
} Card;

static Card laptop = {"NVIDIA GeForce RTX 3060 Laptop GPU", "GPU-aaaa1111-0000-0000-0000-000000000001",
                      "00000000:01:00.0", 6144, 5000, 8, 6, 4, 16, 3840, 2100};
static Card big = {"NVIDIA GeForce RTX 4090", "GPU-aabb2222-0000-0000-0000-000000000002",
                   "00000000:01:00.0", 24564, 24081, 8, 9, 1, 8, 16384, 3105};
static Card old = {"NVIDIA GeForce GTX 1080 Ti", "GPU-cccc3333-0000-0000-0000-000000000003",
                   "00000000:02:00.0", 11264, 11000, 6, 1, 3, 16, 3584, 2025};
static Card slow_first = {"NVIDIA GeForce GTX 1080 Ti", "GPU-cccc3333-0000-0000-0000-000000000003",
                          "00000000:00:01.0", 11264, 11000, 6, 1, 3, 16, 3584, 2025};
static Card split = {"NVIDIA A100-SXM4-40GB", "GPU-dddd4444-0000-0000-0000-000000000004",
                     "00000000:03:00.0", 40960, 40000, 8, 0, 4, 16, 6912, 1410, 1};
static Card twins[] = {{"NVIDIA A100-SXM4-40GB", "GPU-eeee5555-0000-0000-0000-000000000005",
                        "00000000:07:00.0", 40960, 40000, 8, 0, 4, 16, 6912, 1410},
                       {"NVIDIA A100-SXM4-40GB", "GPU-eeee6666-0000-0000-0000-000000000006",
                        "00000000:0B:00.0", 40960, 39000, 8, 0, 4, 16, 6912, 1410}};
static Card spark = {"NVIDIA GB10", "GPU-ffff7777-0000-0000-0000-000000000007",
                     "0000000F:01:00.0", 0, 0, 12, 1, 1, 1, 6144, 2418};
/* The third shares its GPU instance with the second; between the first and the second there is a gap. */
static Card parts[] = {{"NVIDIA A100-SXM4-40GB MIG 1g.5gb", "MIG-11111111-0000-0000-0000-000000000001",
                        "", 4864, 4800, 8, 0, 0, 0, 0, 0, 0, 7, 0, 14},
                       {"NVIDIA A100-SXM4-40GB MIG 1c.2g.10gb", "MIG-22222222-0000-0000-0000-000000000002",
                        "", 9856, 9800, 8, 0, 0, 0, 0, 0, 0, 5, 0, 14},
                       {"NVIDIA A100-SXM4-40GB MIG 1c.2g.10gb", "MIG-33333333-0000-0000-0000-000000000003",
                        "", 9856, 9800, 8, 0, 0, 0, 0, 0, 0, 5, 1, 14}};

static int is(const char *scenario) {
    const char *chosen = getenv("FAKE_NVML");
    return chosen && !strcmp(chosen, scenario);
}

static int text(char *out, unsigned size, const char *value) {
    snprintf(out, size, "%s", value);
    return OK;
}

/* What every question about a card begins with. */
static int refusal(void) { return is("mute") ? NOT_SUPPORTED : is("lost") ? GPU_IS_LOST : is("garbage") ? NOBODY_KNOWS : OK; }

#define REFUSE do { int refused = refusal(); if (refused) return refused; } while (0)

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (is("crash")) raise(SIGSEGV);
    while (is("hang")) pause();
    return is("broken") ? DRIVER_NOT_LOADED : OK;
}

int nvmlShutdown(void) {
    const char *path = getenv("FAKE_NVML_LOG");
    FILE *log = path ? fopen(path, "a") : NULL;
    if (log) { fputs("shutdown\n", log); fclose(log); }
    return OK;
}

const char *nvmlErrorString(int code) { (void)code; return "\xff\xfe not text"; }

int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    const char *version = getenv("FAKE_NVML_DRIVER");
    return is("mute") ? NOT_SUPPORTED : text(out, size, version ? version : "550.54.14");
}

int nvmlSystemGetCudaDriverVersion(int *out) { *out = 12040; return is("mute") ? NOT_SUPPORTED : OK; }

static Card *cards(unsigned index) {
    if (is("none")) return NULL;
    if (is("two")) return index == 0 ? &big : index == 1 ? &old : NULL;
    if (is("mixed")) return index == 0 ? &slow_first : index == 1 ? &big : NULL;
    if (is("mig")) return index == 0 ? &split : index == 1 ? &old : NULL;
    if (is("linked")) return index < 2 ? &twins[index] : NULL;
    if (index) return NULL;
    return is("bare") ? &split : is("spark") ? &spark : &laptop;
}

int nvmlDeviceGetCount_v2(unsigned *out) {
    for (*out = 0; cards(*out); ++*out) {}
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Card **out) {
    *out = cards(index);
    return is("forbidden") ? NO_PERMISSION : *out ? OK : INVALID_ARGUMENT;
}

int nvmlDeviceGetName(Card *card, char *out, unsigned size) {
    return is("mute") ? NOT_SUPPORTED : text(out, size, is("garbage") ? "\xff\xfeGPU" : card->name);
}

int nvmlDeviceGetUUID(Card *card, char *out, unsigned size) { REFUSE; return text(out, size, card->uuid); }

int nvmlDeviceGetMemoryInfo(Card *card, Memory *out) {
    if (is("lost")) return GPU_IS_LOST;
    if (is("blind") || is("spark")) return NOT_SUPPORTED;
    out->total = is("empty") ? 0 : card->total_mib << 20;
    out->free = is("empty") ? 0 : card->free_mib << 20;
    out->used = out->total - out->free;
    return OK;
}

int nvmlDeviceGetCudaComputeCapability(Card *card, int *major, int *minor) {
    REFUSE;
    *major = card->major;
    *minor = card->minor;
    return OK;
}

int nvmlDeviceGetPciInfo_v3(Card *card, Pci *out) {
    REFUSE;
    memset(out, 0, sizeof *out);
    return text(out->bus_id, sizeof out->bus_id, card->bus_id);
}

int nvmlDeviceGetCurrPcieLinkGeneration(Card *card, unsigned *out) { REFUSE; *out = card->gen; return OK; }
int nvmlDeviceGetCurrPcieLinkWidth(Card *card, unsigned *out) { REFUSE; *out = card->width; return OK; }
int nvmlDeviceGetMaxPcieLinkGeneration(Card *card, unsigned *out) { (void)card; REFUSE; *out = 4; return OK; }
int nvmlDeviceGetMaxPcieLinkWidth(Card *card, unsigned *out) { (void)card; REFUSE; *out = 16; return OK; }

int nvmlDeviceGetPowerUsage(Card *card, unsigned *out) {
    (void)card;
    while (is("stuck")) pause();
    REFUSE;
    *out = 35250;
    return OK;
}

/* Half a watt-hour more each time */
int nvmlDeviceGetTotalEnergyConsumption(Card *card, unsigned long long *out) {
    static unsigned long long drawn = 3600000;
    (void)card;
    REFUSE;
    *out = drawn += 1800000;
    return OK;
}

int nvmlDeviceGetEnforcedPowerLimit(Card *card, unsigned *out) { (void)card; REFUSE; *out = 115000; return OK; }
int nvmlDeviceGetTemperature(Card *card, int sensor, unsigned *out) { (void)card; (void)sensor; REFUSE; *out = 61; return OK; }

int nvmlDeviceGetTemperatureThreshold(Card *card, int threshold, unsigned *out) {
    (void)card;
    REFUSE;
    *out = threshold == 1 ? 97 : 0;
    return OK;
}

int nvmlDeviceGetUtilizationRates(Card *card, Utilization *out) {
    (void)card;
    REFUSE;
    *out = (Utilization){12, 3};
    return OK;
}

int nvmlDeviceGetClockInfo(Card *card, int type, unsigned *out) {
    (void)card;
    REFUSE;
    *out = type == 1 ? 1425 : type == 2 ? 7001 : 0;
    return OK;
}

int nvmlDeviceGetMaxClockInfo(Card *card, int type, unsigned *out) {
    REFUSE;
    *out = type == 1 ? card->clock : type == 2 ? 7001 : 0;
    return OK;
}

/* Held back by the power limit and by heat; and, where codes are garbage, by a bit that nobody knows. */
int nvmlDeviceGetCurrentClocksThrottleReasons(Card *card, unsigned long long *out) {
    (void)card;
    REFUSE;
    *out = 0x4 | 0x20;
    return OK;
}

int nvmlDeviceGetEccMode(Card *card, unsigned *now, unsigned *next) {
    REFUSE;
    *now = *next = 1;
    return card == &split ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetPersistenceMode(Card *card, unsigned *out) { (void)card; REFUSE; *out = 0; return OK; }
int nvmlDeviceGetDisplayMode(Card *card, unsigned *out) { REFUSE; *out = card == &laptop; return OK; }
int nvmlDeviceGetDisplayActive(Card *card, unsigned *out) { REFUSE; *out = card == &laptop; return OK; }

int nvmlDeviceGetNvLinkState(Card *card, unsigned link, unsigned *out) {
    (void)card;
    REFUSE;
    if (!is("linked")) return NOT_SUPPORTED;
    *out = link < 3;
    return link < 12 ? OK : INVALID_ARGUMENT;
}

int nvmlDeviceGetNvLinkRemoteDeviceType(Card *card, unsigned link, unsigned *out) {
    (void)card;
    *out = link == 2 ? 2 : 0;
    return OK;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(Card *card, unsigned link, Pci *out) {
    (void)link;
    return text(out->bus_id, sizeof out->bus_id, card == &twins[0] ? "0000:0B:00.0" : "0000:07:00.0");
}

int nvmlDeviceGetMigMode(Card *card, unsigned *now, unsigned *next) {
    REFUSE;
    *now = *next = card->mig;
    return card == &split || card == &twins[0] || card == &twins[1] ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetMaxMigDeviceCount(Card *card, unsigned *out) { (void)card; *out = 7; return OK; }

int nvmlDeviceGetMigDeviceHandleByIndex(Card *card, unsigned index, Card **out) {
    static Card *places[] = {&parts[0], NULL, &parts[1], &parts[2], NULL, NULL, NULL};
    (void)card;
    *out = is("mig") && index < 7 ? places[index] : NULL;
    return *out ? OK : NOT_FOUND;
}

int nvmlDeviceGetGpuInstanceId(Card *card, unsigned *out) { *out = card->gpu_instance; return OK; }
int nvmlDeviceGetComputeInstanceId(Card *card, unsigned *out) { *out = card->compute_instance; return OK; }

int nvmlDeviceGetAttributes_v2(Card *card, Attributes *out) {
    memset(out, 0, sizeof *out);
    out->multiprocessors = card->multiprocessors;
    return OK;
}

/* FAKE_NVML_PROCESSES, those on the list of that kind. */
static int list(char kind, unsigned *count, Process *out) {
    unsigned found = 0, room = *count;
    const char *at = getenv("FAKE_NVML_PROCESSES");
    REFUSE;
    for (; at && *at; at = strchr(at, ';') ? strchr(at, ';') + 1 : NULL) {
        char on;
        unsigned pid;
        long long mib;
        if (sscanf(at, "%c %u %lld", &on, &pid, &mib) != 3) abort();
        if (on != kind && on != 'b') continue;
        if (found < room) out[found] = (Process){pid, mib < 0 ? ~0ull : (unsigned long long)mib << 20, 0, 0};
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : OK;
}

#ifdef OLD_DRIVER
int nvmlDeviceGetComputeRunningProcesses_v2(Card *card, unsigned *count, Process *out) { (void)card; return list('c', count, out); }
int nvmlDeviceGetGraphicsRunningProcesses_v2(Card *card, unsigned *count, Process *out) { (void)card; return list('g', count, out); }
#else
int nvmlDeviceGetComputeRunningProcesses_v3(Card *card, unsigned *count, Process *out) { (void)card; return list('c', count, out); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(Card *card, unsigned *count, Process *out) { (void)card; return list('g', count, out); }
int nvmlDeviceGetNumGpuCores(Card *card, unsigned *out) { REFUSE; *out = card->cores; return OK; }

int nvmlDeviceGetCurrentClocksEventReasons(Card *card, unsigned long long *out) {
    return nvmlDeviceGetCurrentClocksThrottleReasons(card, out);
}
#endif

/* How this compiler lays the structures out, for a test to compare with the binding's. */
const size_t fake_layouts[] = {
    sizeof(Memory), offsetof(Memory, used),
    sizeof(Process), offsetof(Process, used), offsetof(Process, compute_instance),
    sizeof(Pci), offsetof(Pci, bus_id),
    sizeof(Utilization),
    sizeof(Attributes), offsetof(Attributes, memory_mib),
};
