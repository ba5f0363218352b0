// An emulated card: CUDA's driver, runtime and NVRTC on the host, as far as CuPy uses them.
//
// Memory is the host's. A kernel is compiled by g++ and called for one thread after the
// other; where threads wait for each other, each has a stack of its own. All is done
// when a call returns, so that nothing is said about the order of streams. Two cards
// are the same host, twice.
//
// It finds what a card would find: memory that nobody has written (it begins as NaN),
// writing behind the end of an allocation, arguments of a wrong size, results that
// depend on the order of threads (EMULATED_ORDER=reversed). It says nothing about
// speed.
#include "card.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xmmintrin.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <regex>
#include <string>
#include <vector>

EmulatedCounters emulated_counters = {};
static EmulatedCard card = {};
EmulatedCard* emulated_card = &card;
static std::recursive_mutex mutex;
#define LOCKED std::lock_guard<std::recursive_mutex> lock(mutex)
#define API extern "C"

static size_t number(const char* name, size_t otherwise) {
    const char* value = std::getenv(name);
    return value ? std::strtoull(value, nullptr, 10) : otherwise;
}
static bool chosen(const char* name, const char* what) {
    const char* value = std::getenv(name);
    return value && !std::strcmp(value, what);
}
static const int cards = number("EMULATED_DEVICES", 1);
static const size_t capacity = number("EMULATED_MEGABYTES", 8192) << 20;
static const bool reversed = chosen("EMULATED_ORDER", "reversed");
static thread_local int current = 0;

// ---- threads of a block -------------------------------------------------------------

// emulated_switch(&left, entered): keep this stack, go on with another one
asm(R"(
.text
.globl emulated_switch
.hidden emulated_switch
.type emulated_switch, @function
emulated_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");
extern "C" void emulated_switch(void** left, void* entered);

enum State { READY = -1, AT_WARP = EmulatedCard::WARP, AT_BLOCK = EmulatedCard::BLOCK, DONE };
struct Thread {
    void* stack;
    int state;
};
static const size_t STACK = 256 << 10;
static std::vector<Thread> threads;
static int running;
static void* scheduler;
static void (*kernel)(void**);
static void** arguments;

static void place(int rank) {
    dim3 n = card.threads;
    card.thread = {rank % n.x, rank / n.x % n.y, rank / n.x / n.y};
}
static void wait(EmulatedCard::Group group) {
    threads[running].state = group;
    emulated_switch(&threads[running].stack, scheduler);
}
static unsigned live() {
    unsigned bits = 0;
    for (size_t i = running / 32 * 32, k = 0; k < 32 && i + k < threads.size(); k++)
        bits |= unsigned(threads[i + k].state != DONE) << k;
    return bits;
}
static void thread_main() {
    kernel(arguments);
    threads[running].state = DONE;
    emulated_switch(&threads[running].stack, scheduler);
}

// Those from `first` to `last` go on if all that are left of them wait for the same;
// true if there are any.
static bool release(int first, int last, State at) {
    bool any = false;
    for (int i = first; i < last; i++) {
        if (threads[i].state != DONE && threads[i].state != at) return false;
        any |= threads[i].state == at;
    }
    for (int i = first; i < last; i++)
        if (threads[i].state == at) threads[i].state = READY;
    return any;
}

static void run_block(int n) {
    static char* stacks = (char*)mmap(nullptr, 1024 * STACK, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    threads.resize(n);
    for (int i = 0; i < n; i++) {
        void** top = (void**)(stacks + (i + 1) * STACK - 64);
        // at the start of a function the stack is 8 bytes beyond a multiple of 16
        *--top = nullptr;
        *--top = (void*)thread_main;
        std::memset(top -= 6, 0, 6 * sizeof *top);  // the registers
        threads[i] = {top, READY};
    }
    for (bool on = true; on;) {
        for (int k = 0; k < n; k++) {
            int i = reversed ? n - 1 - k : k;
            if (threads[i].state != READY) continue;
            place(running = i);
            emulated_switch(&scheduler, threads[i].stack);
        }
        on = false;
        for (int i = 0; i < n; i += 32) on |= release(i, std::min(i + 32, n), AT_WARP);
        on |= release(0, n, AT_BLOCK);
    }
    for (auto& t : threads)
        if (t.state != DONE) {
            std::fprintf(stderr,
                         "emulated card: the threads of a block wait at different barriers\n");
            std::abort();
        }
}

// ---- the driver: modules and launches -----------------------------------------------

struct Kernel {
    void (*call)(void**);
    bool waits, flushes;
};
struct Module {
    void* handle;
    std::map<std::string, Kernel> kernels;
};

API CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                            unsigned by, unsigned bz, unsigned bytes, CUstream, void** given,
                            void**) {
    LOCKED;
    static unsigned long long words[1024];
    unsigned long n = (unsigned long)bx * by * bz;
    if (n < 1 || n > 1024 || gx < 1 || gy < 1 || gz < 1 || gx > INT_MAX || gy > 65535 ||
        gz > 65535 || bytes > 48 << 10)
        return CUDA_ERROR_INVALID_VALUE;
    emulated_counters.launches++;
    std::vector<unsigned long long> shared(bytes / 8 + 1);
    card = {{}, {}, {bx, by, bz}, {gx, gy, gz}, (char*)shared.data(), words, wait, live};
    kernel = ((Kernel*)f)->call;
    arguments = given;
    unsigned mode = _mm_getcsr();
    if (((Kernel*)f)->flushes) _mm_setcsr(mode | 0x8040);  // subnormal results and operands are 0
    unsigned long blocks = (unsigned long)gx * gy * gz;
    for (unsigned long k = 0; k < blocks; k++) {
        unsigned long b = reversed ? blocks - 1 - k : k;
        card.block = {unsigned(b % gx), unsigned(b / gx % gy), unsigned(b / gx / gy)};
        if (((Kernel*)f)->waits) run_block(n);
        else
            for (unsigned i = 0; i < n; i++) {
                place(reversed ? n - 1 - i : i);
                kernel(given);
            }
    }
    _mm_setcsr(mode);
    return CUDA_SUCCESS;
}
API CUresult cuModuleLoadData(CUmodule* module, const void* image) {
    auto* elf = (const Elf64_Ehdr*)image;
    size_t size = elf->e_shoff + (size_t)elf->e_shentsize * elf->e_shnum;
    char path[] = "/tmp/emulated-card-XXXXXX";
    int file = mkstemp(path);
    bool written = write(file, image, size) == (ssize_t)size;
    close(file);
    void* handle = written ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
    unlink(path);
    if (!handle) return CUDA_ERROR_INVALID_IMAGE;
    *module = (CUmodule) new Module{handle, {}};
    return CUDA_SUCCESS;
}
API CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
API CUresult cuModuleGetFunction(CUfunction* function, CUmodule m, const char* name) {
    LOCKED;
    auto* module = (Module*)m;
    void* call = dlsym(module->handle, (std::string("emulated_call_") + name).c_str());
    if (!call) return CUDA_ERROR_NOT_FOUND;
    auto flag = [&](const char* what) { return *(bool*)dlsym(module->handle, what); };
    Kernel& k = module->kernels[name] = {(void (*)(void**))call, flag("emulated_waits"),
                                         flag("emulated_flushes")};
    *function = (CUfunction)&k;
    return CUDA_SUCCESS;
}
API CUresult cuGetErrorName(CUresult, const char** text) {
    return *text = "error of the emulated card", CUDA_SUCCESS;
}
API CUresult cuGetErrorString(CUresult, const char** text) {
    return *text = "see the CUresult of this number", CUDA_SUCCESS;
}
API CUresult cuCtxGetCurrent(CUcontext* context) {
    return *context = (CUcontext)(size_t)(current + 1), CUDA_SUCCESS;
}
API CUresult cuCtxSetCurrent(CUcontext context) {
    return current = (int)(size_t)context - 1, CUDA_SUCCESS;
}
API CUresult cuCtxGetDevice(CUdevice* device) { return *device = current, CUDA_SUCCESS; }
API CUresult cuFuncGetAttribute(int* value, CUfunction_attribute what, CUfunction) {
    return *value = what == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0, CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int, size_t) {
    return *blocks = 2, CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxPotentialBlockSize(int* grid, int* block, CUfunction, CUoccupancyB2DSize,
                                              size_t, int limit) {
    return *grid = 4, *block = limit ? std::min(limit, 256) : 256, CUDA_SUCCESS;
}

// ---- NVRTC --------------------------------------------------------------------------

struct Program {
    std::string source, log, object;
    std::vector<std::string> expressions;
    std::map<std::string, std::string> lowered;
};
static const int COMPILATION = 6, NO_NAME = 10;
// CuPy asks for it to learn the compiler's version, and keeps it in its cache's key
static const std::string ptx = "// emulated card\n";

static std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}
static std::string here() {
    Dl_info info;
    dladdr((void*)&here, &info);
    std::string path = realpath(info.dli_fname, nullptr);
    return path.substr(0, path.rfind('/'));
}

API const char* nvrtcGetErrorString(int code) {
    return code == COMPILATION ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR";
}
API int nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 0, 0; }
API int nvrtcGetNumSupportedArchs(int* n) { return *n = 1, 0; }
API int nvrtcGetSupportedArchs(int* archs) { return archs[0] = 90, 0; }
API int nvrtcCreateProgram(Program** p, const char* source, const char*, int, const char**,
                           const char**) {
    return *p = new Program{source}, 0;
}
API int nvrtcDestroyProgram(Program** p) { return delete *p, 0; }
API int nvrtcAddNameExpression(Program* p, const char* expression) {
    return p->expressions.push_back(expression), 0;
}
API int nvrtcGetLoweredName(Program* p, const char* expression, const char** name) {
    auto found = p->lowered.find(expression);
    return found == p->lowered.end() ? NO_NAME : (*name = found->second.c_str(), 0);
}
API int nvrtcCompileProgram(Program* p, int n, const char** options) {
    {
        LOCKED;
        emulated_counters.compilations++;
    }
    std::string entries;
    auto enter = [&](const std::string& name, const std::string& function) {
        entries += "extern \"C\" void emulated_call_" + name + "(void** p) { emulated_call(&" +
                   function + ", p); }\n";
    };
    const std::string bounds = R"((?:__launch_bounds__\s*\([^)]*\)\s*)?)";
    std::regex head(R"((template\s*<[^;{}]*>\s*)?(?:extern\s+"C"\s+)?__global__\s+)" + bounds +
                    R"(void\s+)" + bounds + R"((\w+)\s*\()");
    for (std::sregex_iterator i(p->source.begin(), p->source.end(), head), end; i != end; ++i)
        if (!(*i)[1].matched) enter((*i)[2], (*i)[2]);
    for (auto& e : p->expressions)
        enter(p->lowered[e] = "expression" + std::to_string(p->lowered.size()), e);
    bool waits = std::regex_search(p->source, std::regex("__sync|__shared__|__shfl")),
         flushes = false;
    std::string command = "g++ -std=gnu++17 -O1 -mfma -fPIC -shared -w -fpermissive";
    for (int i = 0; i < n; i++) {
        std::string option = options[i];
        flushes |= option == "-ftz=true";
        if (!option.compare(0, 2, "-I") || !option.compare(0, 2, "-D"))
            command += " '" + option + "'";
    }
    command += " -I" + here() + "/cuda";
    // a card flushes float32 only, the processor both
    flushes &= p->source.find("double") == std::string::npos;
    std::regex dynamic(R"(extern\s+__shared__\s+(\w+(?:\s+\w+)?)\s+(\w+)\s*\[\s*\]\s*;)");
    std::string text =
        "#line 1 \"kernel\"\n" +
        std::regex_replace(p->source, dynamic, "$1* $2 = ($1*)emulated_card->shared;") + "\n" +
        entries + "extern \"C\" { bool emulated_waits = " + std::to_string(waits) +
        ", emulated_flushes = " + std::to_string(flushes) + "; }\n";
    char folder[] = "/tmp/emulated-card-XXXXXX";
    std::string at = mkdtemp(folder);
    std::ofstream(at + "/kernel.cpp") << text;
    int status = std::system((command + " -include " + here() + "/kernel.h -o " + at +
                              "/kernel.so " + at + "/kernel.cpp > " + at + "/log 2>&1")
                                 .c_str());
    p->log = read(at + "/log");
    p->object = read(at + "/kernel.so");
    for (auto name : {"/kernel.cpp", "/kernel.so", "/log", ""}) std::remove((at + name).c_str());
    return status ? COMPILATION : 0;
}
static int give(const std::string& text, char* to) {
    return std::memcpy(to, text.c_str(), text.size()), 0;
}
API int nvrtcGetCUBINSize(Program* p, size_t* n) { return *n = p->object.size(), 0; }
API int nvrtcGetCUBIN(Program* p, char* to) { return give(p->object, to); }
API int nvrtcGetPTXSize(Program*, size_t* n) { return *n = ptx.size(), 0; }
API int nvrtcGetPTX(Program*, char* to) { return give(ptx, to); }
API int nvrtcGetProgramLogSize(Program* p, size_t* n) { return *n = p->log.size() + 1, 0; }
API int nvrtcGetProgramLog(Program* p, char* to) { return to[p->log.size()] = 0, give(p->log, to); }

// ---- the runtime: memory ------------------------------------------------------------

struct Allocation {
    size_t size;
    int device;
    char* pages;
    size_t mapped;
};
static std::map<size_t, Allocation> allocations;
static size_t used = 0;
static const size_t PAGE = 4096;

// The end of an allocation is the end of a page, and the next one cannot be touched.
static cudaError_t allocate(void** p, size_t size) {
    LOCKED;
    if (used + size > capacity) return cudaErrorMemoryAllocation;
    size_t bytes = (size + 15) / 16 * 16, mapped = (bytes + PAGE - 1) / PAGE * PAGE + PAGE;
    char* pages =
        (char*)mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(pages + mapped - PAGE, PAGE, PROT_NONE))
        return cudaErrorMemoryAllocation;
    *p = pages + mapped - PAGE - bytes;
    std::memset(*p, 0xff, size);
    allocations[(size_t)*p] = {size, current, pages, mapped};
    used += size;
    emulated_counters.allocations++;
    return cudaSuccess;
}
static cudaError_t release(void* p) {
    LOCKED;
    if (!p) return cudaSuccess;
    auto found = allocations.find((size_t)p);
    if (found == allocations.end()) return cudaErrorInvalidValue;
    used -= found->second.size;
    munmap(found->second.pages, found->second.mapped);
    allocations.erase(found);
    return cudaSuccess;
}
static const Allocation* owner(const void* p) {
    auto next = allocations.upper_bound((size_t)p);
    if (next == allocations.begin()) return nullptr;
    auto& [start, allocation] = *--next;
    return (size_t)p < start + allocation.size ? &allocation : nullptr;
}
static cudaError_t copy(void* to, const void* from, size_t size) {
    LOCKED;
    auto& c = emulated_counters;
    (owner(to) ? owner(from) ? c.moves : c.uploads : c.downloads)++;
    std::memmove(to, from, size);
    return cudaSuccess;
}
static cudaError_t set(void* p, int value, size_t size) {
    LOCKED;
    emulated_counters.fills++;
    std::memset(p, value, size);
    return cudaSuccess;
}
API cudaError_t cudaMalloc(void** p, size_t n) { return allocate(p, n); }
API cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t) { return allocate(p, n); }
API cudaError_t cudaFree(void* p) { return release(p); }
API cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return release(p); }
API cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) {
    return *p = std::malloc(n), cudaSuccess;
}
API cudaError_t cudaFreeHost(void* p) { return std::free(p), cudaSuccess; }
API cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    return *total = capacity, *free = capacity - used, cudaSuccess;
}
API cudaError_t cudaMemcpy(void* to, const void* from, size_t n, cudaMemcpyKind) {
    return copy(to, from, n);
}
API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind,
                                cudaStream_t) {
    return copy(to, from, n);
}
API cudaError_t cudaMemcpyPeer(void* to, int, const void* from, int, size_t n) {
    return copy(to, from, n);
}
API cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t n, cudaStream_t) {
    return copy(to, from, n);
}
API cudaError_t cudaMemset(void* p, int value, size_t n) { return set(p, value, n); }
API cudaError_t cudaMemsetAsync(void* p, int value, size_t n, cudaStream_t) {
    return set(p, value, n);
}
API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
    LOCKED;
    auto* found = owner(p);
    *a = {};
    a->type = found ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    a->device = found ? found->device : -2;
    (found ? a->devicePointer : a->hostPointer) = (void*)p;
    return cudaSuccess;
}

// ---- the runtime: devices, streams, events ------------------------------------------

static bool exists(int device) { return 0 <= device && device < cards; }
API const char* cudaGetErrorName(cudaError_t code) {
    return code == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaError";
}
API const char* cudaGetErrorString(cudaError_t) { return "error of the emulated card"; }
API cudaError_t cudaGetLastError() { return cudaSuccess; }
API cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDA_VERSION, cudaSuccess; }
API cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDA_VERSION, cudaSuccess; }
API cudaError_t cudaGetDevice(int* device) { return *device = current, cudaSuccess; }
API cudaError_t cudaSetDevice(int device) {
    return exists(device) ? (current = device, cudaSuccess) : cudaErrorInvalidDevice;
}
API cudaError_t cudaGetDeviceCount(int* n) { return *n = cards, cudaSuccess; }
API cudaError_t cudaDeviceSynchronize() { return emulated_counters.waits++, cudaSuccess; }
API cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 1, cudaSuccess; }
API cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int device) {
    static const std::map<int, int> values = {
        {cudaDevAttrComputeCapabilityMajor, 9},
        {cudaDevAttrMultiProcessorCount, 2},
        {cudaDevAttrMaxThreadsPerBlock, 1024},
        {cudaDevAttrMaxBlockDimX, 1024},
        {cudaDevAttrMaxBlockDimY, 1024},
        {cudaDevAttrMaxBlockDimZ, 64},
        {cudaDevAttrMaxGridDimX, INT_MAX},
        {cudaDevAttrMaxGridDimY, 65535},
        {cudaDevAttrMaxGridDimZ, 65535},
        {cudaDevAttrWarpSize, 32},
        {cudaDevAttrMaxSharedMemoryPerBlock, 48 << 10},
        {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
    };
    auto found = values.find(what);
    *value = found == values.end() ? 0 : found->second;
    return exists(device) ? cudaSuccess : cudaErrorInvalidDevice;
}
API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
    *p = {};
    std::strcpy(p->name, "emulated card");
    p->totalGlobalMem = capacity;
    p->major = 9;
    p->multiProcessorCount = 2;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->sharedMemPerBlock = 48 << 10;
    return exists(device) ? cudaSuccess : cudaErrorInvalidDevice;
}
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    return *stream = (cudaStream_t) new char, cudaSuccess;
}
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
    return cudaStreamCreateWithFlags(stream, flags);
}
API cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    return cudaStreamCreateWithFlags(stream, 0);
}
API cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete (char*)stream, cudaSuccess; }
API cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return emulated_counters.waits++, cudaSuccess;
}
API cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
API cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
API cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
    return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    return *event = (cudaEvent_t) new timespec{}, cudaSuccess;
}
API cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
API cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete (timespec*)event, cudaSuccess; }
API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
    return clock_gettime(CLOCK_MONOTONIC, (timespec*)event), cudaSuccess;
}
API cudaError_t cudaEventSynchronize(cudaEvent_t) { return emulated_counters.waits++, cudaSuccess; }
API cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
API cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
    auto &a = *(timespec*)from, &b = *(timespec*)to;
    return *ms = 1e3f * (b.tv_sec - a.tv_sec) + 1e-6f * (b.tv_nsec - a.tv_nsec), cudaSuccess;
}
