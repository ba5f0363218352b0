// What NVRTC has built in, for g++: a kernel becomes a function that is called once for
// every thread of the grid.
#pragma once
#include <algorithm>
#include <cassert>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include <crt/host_defines.h>
#undef __device__
#undef __host__
#undef __global__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __noinline__
#undef __launch_bounds__
#define __device__
#define __host__
#define __global__
#define __shared__ static  // blocks run one after the other
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#include <vector_functions.h>
#include <vector_types.h>

#include "card.h"
#define threadIdx (emulated_card->thread)
#define blockIdx (emulated_card->block)
#define blockDim (emulated_card->threads)
#define gridDim (emulated_card->blocks)
#define warpSize 32

// ---- threads that wait for each other
// a warp has 32 words, in which its threads leave what the others read
static inline void __syncthreads() { emulated_card->wait(EmulatedCard::BLOCK); }
static inline void __syncwarp(unsigned = 0xffffffffu) { emulated_card->wait(EmulatedCard::WARP); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline unsigned __activemask() { return emulated_card->live(); }
static inline unsigned emulated_rank() {
    return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}

template <class T>
T emulated_exchange(T x, int from, bool valid) {
    static_assert(sizeof(T) <= 8, "a shuffle moves 8 bytes at most");
    unsigned rank = emulated_rank();
    unsigned long long* words = emulated_card->words + rank / 32 * 32;
    __syncwarp();  // all have read what was there before
    std::memcpy(&words[rank % 32], &x, sizeof(T));
    __syncwarp();
    T y = x;
    if (valid) std::memcpy(&y, &words[from], sizeof(T));
    __syncwarp();
    return y;
}
static inline int emulated_base(int width) { return emulated_rank() % 32 / width * width; }
template <class T>
T __shfl_sync(unsigned, T x, int lane, int width = 32) {
    return emulated_exchange(x, emulated_base(width) + (lane & (width - 1)), true);
}
template <class T>
T __shfl_up_sync(unsigned, T x, unsigned by, int width = 32) {
    int from = int(emulated_rank() % 32) - int(by);
    return emulated_exchange(x, from, from >= emulated_base(width));
}
template <class T>
T __shfl_down_sync(unsigned, T x, unsigned by, int width = 32) {
    int from = emulated_rank() % 32 + by;
    return emulated_exchange(x, from, from < emulated_base(width) + width);
}
template <class T>
T __shfl_xor_sync(unsigned, T x, int mask, int width = 32) {
    int from = emulated_rank() % 32 ^ mask;
    return emulated_exchange(x, from, from < emulated_base(width) + width);
}

// ---- single instructions
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
template <class T>
T __ldg(const T* p) { return *p; }
#define EMULATED_ATOMIC(NAME, NEW) \
    template <class T, class V>    \
    T NAME(T* p, V given) {        \
        T v = (T)given, old = *p;  \
        *p = NEW;                  \
        return old;                \
    }
EMULATED_ATOMIC(atomicAdd, old + v)
EMULATED_ATOMIC(atomicSub, old - v)
EMULATED_ATOMIC(atomicExch, v)
EMULATED_ATOMIC(atomicMax, std::max(old, v))
EMULATED_ATOMIC(atomicMin, std::min(old, v))
EMULATED_ATOMIC(atomicOr, old | v)
EMULATED_ATOMIC(atomicAnd, old & v)
template <class T>
T atomicCAS(T* p, T expected, T v) {
    T old = *p;
    if (old == expected) *p = v;
    return old;
}
template <class To, class From>
To emulated_bits(From x) {
    To y;
    std::memcpy(&y, &x, sizeof y);
    return y;
}
static inline int __float_as_int(float x) { return emulated_bits<int>(x); }
static inline float __int_as_float(int x) { return emulated_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return emulated_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return emulated_bits<double>(x); }
static inline int __double2hiint(double x) { return (int)(__double_as_longlong(x) >> 32); }
static inline int __double2loint(double x) { return (int)__double_as_longlong(x); }
static inline unsigned short __float2half_rn(float x) {
    return emulated_bits<unsigned short>((_Float16)x);
}
static inline float __half2float(unsigned short x) { return emulated_bits<_Float16>(x); }
static inline unsigned short __half_as_ushort(unsigned short x) { return x; }
static inline float __ushort_as_half(unsigned short x) { return __half2float(x); }

// ---- functions of numbers; CUDA has them without a namespace
using std::abs, std::isnan, std::isinf, std::isfinite, std::signbit, std::exp, std::exp2,
    std::expm1, std::log, std::log2, std::log10, std::log1p;
using std::acos, std::acosh, std::asin, std::asinh, std::atan, std::atan2, std::atanh, std::cos,
    std::cosh, std::sin, std::sinh, std::tan, std::tanh;
using std::cbrt, std::ceil, std::copysign, std::erf, std::erfc, std::fabs, std::floor, std::fma,
    std::fmax, std::fmin, std::fmod, std::frexp;
using std::hypot, std::ldexp, std::lgamma, std::modf, std::nearbyint, std::nextafter, std::pow,
    std::rint, std::round, std::sqrt, std::tgamma, std::trunc;
template <class A, class B>
std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>, std::common_type_t<A, B>> max(
    A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return std::fmax(T(a), T(b));
    else return std::max(T(a), T(b));
}
template <class A, class B>
std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>, std::common_type_t<A, B>> min(
    A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return std::fmin(T(a), T(b));
    else return std::min(T(a), T(b));
}
template <class T>
std::enable_if_t<std::is_floating_point_v<T>, T> rsqrt(T x) { return 1 / std::sqrt(x); }

// ---- a launch hands over one pointer an argument
template <class... A, std::size_t... I>
void emulated_spread(void (*kernel)(A...), void** p, std::index_sequence<I...>) {
    kernel(*(std::remove_cv_t<std::remove_reference_t<A>>*)p[I]...);
}
template <class... A>
void emulated_call(void (*kernel)(A...), void** p) {
    emulated_spread(kernel, p, std::index_sequence_for<A...>{});
}

#include <cupy/complex.cuh>
#include <cupy/carray.cuh>
#include <cupy/atomics.cuh>
#include <cupy/math_constants.h>
