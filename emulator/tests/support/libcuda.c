// A library with the driver's entry points that runs nothing: it checks what it is given as a driver would, and copies back
// answers from a file, one after another. -D INIT, DEVICES, LOAD, LAUNCH give errors; LACKING leaves a function out.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef INIT
#define INIT 0
#endif
#ifndef DEVICES
#define DEVICES 1
#endif
#ifndef LOAD
#define LOAD 0
#endif
#ifndef LAUNCH
#define LAUNCH 0
#endif
#ifndef ANSWERS
#define ANSWERS "/nonexistent"
#endif

enum { INVALID_VALUE = 1, NOT_INITIALIZED = 3, NO_CONTEXT = 201, NOT_FOUND = 500, MAGIC = 0x5450414D };

static int initialised, context, retained;
static FILE *answers;

// Allocations: addresses and sizes of what is alive.
static struct { char *at; size_t size; } memory[16];

static int alive(uint64_t address, size_t size) {
    for (int i = 0; i < 16; ++i)
        if (memory[i].at && address >= (uint64_t)(uintptr_t)memory[i].at &&
            address + size <= (uint64_t)(uintptr_t)memory[i].at + memory[i].size)
            return 1;
    return 0;
}

int cuInit(unsigned flags) {
    if (flags) return INVALID_VALUE;
    if (INIT) return INIT;
    initialised = 1;
    return 0;
}

int cuDriverGetVersion(int *version) { *version = 13000; return 0; }

int cuDeviceGetCount(int *count) {
    *count = DEVICES;
    return initialised ? 0 : NOT_INITIALIZED;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = 0;
    return ordinal == 0 ? 0 : INVALID_VALUE;
}

int cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, (size_t)length, "Pretended GPU");
    return device ? INVALID_VALUE : 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (device || (attribute != 75 && attribute != 76)) return INVALID_VALUE;
    *value = attribute == 75 ? 9 : 0;
    return 0;
}

int cuDevicePrimaryCtxRetain(void **out, int device) {
    *out = &context;
    ++retained;
    return device ? INVALID_VALUE : 0;
}

#ifndef LACKING
int cuDevicePrimaryCtxRelease_v2(int device) {
    if (answers) fclose(answers);
    answers = NULL;
    return device || --retained < 0 ? INVALID_VALUE : 0;
}
#endif

int cuCtxSetCurrent(void *c) { context = c == (void *)&context; return context ? 0 : INVALID_VALUE; }
int cuCtxSynchronize(void) { return context ? 0 : NO_CONTEXT; }

// A module is a copy of its text; a function is its module.
int cuModuleLoadDataEx(void **module, const void *image, unsigned n, int *options, void **values) {
    if (!context) return NO_CONTEXT;
    if (n != 2 || options[0] != 5 || options[1] != 6 || (uintptr_t)values[1] != 4096) return INVALID_VALUE;
    if (strncmp(image, ".version", 8)) return INVALID_VALUE;
    if (LOAD) {
        strcpy(values[0], "pretended log");
        return LOAD;
    }
    *module = strdup(image);
    return 0;
}

int cuModuleUnload(void *module) { free(module); return 0; }

int cuModuleGetFunction(void **function, void *module, const char *name) {
    if (strcmp(name, "k") || !strstr(module, ".entry k(")) return NOT_FOUND;
    *function = module;
    return 0;
}

int cuFuncSetAttribute(void *function, int attribute, int value) {
    return function && attribute == 8 && value > 48 << 10 && value <= 227 << 10 ? 0 : INVALID_VALUE;
}

int cuMemAlloc_v2(uint64_t *address, size_t size) {
    for (int i = 0; i < 16; ++i)
        if (!memory[i].at) {
            memory[i].at = aligned_alloc(256, (size + 255) / 256 * 256);
            memory[i].size = size;
            *address = (uint64_t)(uintptr_t)memory[i].at;
            return size ? 0 : INVALID_VALUE;
        }
    return INVALID_VALUE;
}

int cuMemFree_v2(uint64_t address) {
    for (int i = 0; i < 16; ++i)
        if (address == (uint64_t)(uintptr_t)memory[i].at) {
            free(memory[i].at);
            memory[i].at = NULL;
            return 0;
        }
    return INVALID_VALUE;
}

int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t n) {
    if (!alive(to, n)) return INVALID_VALUE;
    memcpy((void *)(uintptr_t)to, from, n);
    return 0;
}

int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t n) {
    if (!alive(from, n)) return INVALID_VALUE;
    if (!answers) answers = fopen(ANSWERS, "rb");
    return answers && fread(to, 1, n, answers) == n ? 0 : INVALID_VALUE;
}

int cuGetErrorString(int code, const char **text) { *text = "pretended error"; return code == 0; }

int cuTensorMapEncodeTiled(uint32_t *map, int type, unsigned rank, void *address, const uint64_t *dims, const uint64_t *strides,
                           const uint32_t *box, const uint32_t *steps, int interleave, int swizzle, int promotion, int fill) {
    static const unsigned size[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
    if ((uintptr_t)map % 64 || type < 0 || type > 9 || rank < 1 || rank > 5 || !alive((uint64_t)(uintptr_t)address, 1) ||
        interleave || swizzle < 0 || swizzle > 3 || promotion || fill < 0 || fill > 1 || box[0] * size[type] % 16)
        return INVALID_VALUE;
    uint64_t last = (dims[0] - 1) * size[type];
    for (unsigned i = 0; i < rank; ++i) {
        if (!dims[i] || !box[i] || box[i] > 256 || !steps[i] || steps[i] > 8) return INVALID_VALUE;
        if (i + 1 < rank && (strides[i] % 16 || !strides[i])) return INVALID_VALUE;
        if (i) last += (dims[i] - 1) * strides[i - 1];
    }
    if (!alive((uint64_t)(uintptr_t)address, last + size[type])) return INVALID_VALUE;
    map[0] = MAGIC;
    return 0;
}

// Walks the declared parameters of the text beside the pointers: addresses must be alive, maps encoded.
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **params, void **extra) {
    if (!context) return NO_CONTEXT;
    if (LAUNCH) return LAUNCH;
    if (!gx || gy != 1 || gz != 1 || !bx || by != 1 || bz != 1 || bx > 1024 || shared > 227 << 10 || stream || extra)
        return INVALID_VALUE;
    char *at = strstr(function, ".entry k("), *end = strchr(at, ')');
    for (int i = 0; (at = strstr(at, ".param ")) && at < end; ++i, ++at) {
        const char *declared = at + 7;
        if (!strncmp(declared, ".align 64 .b8", 13)) {
            if (*(uint32_t *)params[i] != MAGIC) return INVALID_VALUE;
        } else if (!strncmp(declared, ".u64 d", 6) && declared[6] != ',' && declared[6] != ')') {
            // A descriptor: its upper half says the strides.
            if (*(uint64_t *)params[i] == 1) return INVALID_VALUE;
        } else if (!strncmp(declared, ".u64", 4)) {
            if (!alive(*(uint64_t *)params[i], 1)) return INVALID_VALUE;
        } else if (*(uint32_t *)params[i] > 1) {
            return INVALID_VALUE;
        }
    }
    return 0;
}
