// What CuPy takes from Thrust: sorts along the last axis, of values, of indices by
// values, of indices by several rows of keys.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <vector>

typedef std::vector<std::ptrdiff_t> Shape;
static size_t rows(const Shape& shape) {
    return std::accumulate(shape.begin(), shape.end() - 1, size_t(1), std::multiplies<size_t>());
}

struct Less {  // NaN comes last
    template <class T>
    bool operator()(T a, T b) const { return a < b || (b != b && a == a); }
};
template <class T>
static void sort(T* p, const Shape& shape) {
    for (size_t n = shape.back(), i = 0; i < rows(shape); i++, p += n)
        std::stable_sort(p, p + n, Less());
}
template <class T>
static void argsort(T* p, size_t* index, const Shape& shape) {
    for (size_t n = shape.back(), i = 0; i < rows(shape); i++, p += n, index += n) {
        std::iota(index, index + n, 0);
        std::stable_sort(index, index + n, [p](size_t a, size_t b) { return Less()(p[a], p[b]); });
        std::stable_sort(p, p + n, Less());
    }
}
template <class T>
static void lexsort(T* keys, size_t* index, size_t k, size_t n) {
    std::iota(index, index + n, 0);
    for (T* p = keys; p < keys + k * n; p += n)
        std::stable_sort(index, index + n, [p](size_t a, size_t b) { return Less()(p[a], p[b]); });
}
#define BY_TYPE(f, data, ...)                                    \
    switch (type) { /* as in cupy/cuda/common.pxd */             \
        case 0: return f((int8_t*)data, __VA_ARGS__);            \
        case 1: case 13: return f((uint8_t*)data, __VA_ARGS__);  \
        case 2: return f((int16_t*)data, __VA_ARGS__);           \
        case 4: return f((int32_t*)data, __VA_ARGS__);           \
        case 5: return f((uint32_t*)data, __VA_ARGS__);          \
        case 6: return f((int64_t*)data, __VA_ARGS__);           \
        case 7: return f((uint64_t*)data, __VA_ARGS__);          \
        case 9: return f((float*)data, __VA_ARGS__);             \
        case 10: return f((double*)data, __VA_ARGS__);           \
    }                                                            \
    std::fprintf(stderr, "emulated card: no sort of type %d\n", type), std::abort();
void thrust_sort(int type, void* data, size_t*, const Shape& shape, intptr_t, void*) {
    BY_TYPE(sort, data, shape)
}
void thrust_argsort(int type, size_t* index, void* data, void*, const Shape& shape, intptr_t,
                    void*) {
    BY_TYPE(argsort, data, index, shape)
}
void thrust_lexsort(int type, size_t* index, void* keys, size_t k, size_t n, intptr_t, void*) {
    BY_TYPE(lexsort, keys, index, k, n)
}
