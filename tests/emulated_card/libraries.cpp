// Of cuBLAS, cuSOLVER and cuSPARSE what CuPy calls for pyidl, in float32 and float64,
// by the OpenBLAS that NumPy brings (with 64-bit integers). The others say that they
// are missing (missing.c, which make.sh writes).
#include "card.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#define API extern "C" int
typedef int64_t Int;
static const int DONE = 0, NOT_SUPPORTED = 15, FLOAT32 = 0, FLOAT64 = 1;
static EmulatedCounters& counters = emulated_counters;
static char transposition(int op) { return "NTC"[op]; }
static char half(int uplo) { return "LU"[uplo]; }

extern "C" {
#define LAPACK(l)                                                                         \
    void scipy_##l##gemm_64_(...), scipy_##l##trsm_64_(...), scipy_##l##potrf_64_(...);   \
    void scipy_##l##getrf_64_(...), scipy_##l##getrs_64_(...), scipy_##l##getri_64_(...), \
        scipy_##l##geqrf_64_(...);                                                        \
    void scipy_##l##orgqr_64_(...), scipy_##l##syevd_64_(...), scipy_##l##gesvd_64_(...);
LAPACK(s)
LAPACK(d)
}

struct Handle {
    int mode;
    void* stream;
};
#define HANDLE(NAME, CREATE, DESTROY)                                         \
    API NAME##CREATE(Handle** h) { return *h = new Handle{}, DONE; }          \
    API NAME##DESTROY(Handle* h) { return delete h, DONE; }
HANDLE(cublas, Create_v2, Destroy_v2)
HANDLE(cusolverDn, Create, Destroy)
HANDLE(cusparse, Create, Destroy)
API cublasSetStream_v2(Handle* h, void* stream) { return h->stream = stream, DONE; }
API cublasGetStream_v2(Handle* h, void** stream) { return *stream = h->stream, DONE; }
API cublasSetMathMode(Handle* h, int mode) { return h->mode = mode, DONE; }
API cublasGetMathMode(Handle* h, int* mode) { return *mode = h->mode, DONE; }
API cublasSetPointerMode_v2(Handle*, int) { return DONE; }
API cublasGetPointerMode_v2(Handle*, int* mode) { return *mode = 0, DONE; }
API cublasGetVersion_v2(Handle*, int* version) { return *version = 130000, DONE; }
API cusolverDnSetStream(Handle* h, void* stream) { return h->stream = stream, DONE; }
API cusolverDnGetStream(Handle* h, void** stream) { return *stream = h->stream, DONE; }
API cusparseSetStream(Handle* h, void* stream) { return h->stream = stream, DONE; }
API cusparseGetVersion(Handle*, int* version) { return *version = 12600, DONE; }

// ---- cuBLAS
// C = alpha op(A) op(B) + beta C, one product or several; C = alpha op(A) + beta op(B);
// op(A) X = alpha B
#define PRODUCTS(L, l, R)                                                                          \
    static int product(int ta, int tb, Int m, Int n, Int k, const R* alpha, const R* a, Int la,    \
                       const R* b, Int lb, const R* beta, R* c, Int lc) {                          \
        char x = transposition(ta), y = transposition(tb);                                         \
        if (la < std::max<Int>(1, ta ? k : m) || lb < std::max<Int>(1, tb ? n : k) ||              \
            lc < std::max<Int>(1, m))                                                              \
            return 7;                                                                              \
        if (*beta == 0)                                                                            \
            for (Int j = 0; j < n; j++)                                                            \
                std::memset(c + j * lc, 0, m * sizeof(R)); /* NaN may be there */                  \
        scipy_##l##gemm_64_(&x, &y, &m, &n, &k, alpha, a, &la, b, &lb, beta, c, &lc);              \
        return DONE;                                                                               \
    }                                                                                              \
    API cublas##L##gemmStridedBatched(Handle*, int ta, int tb, int m, int n, int k,                \
                                      const R* alpha, const R* a, int la, long long sa,            \
                                      const R* b, int lb, long long sb, const R* beta, R* c,       \
                                      int lc, long long sc, int count) {                           \
        counters.products++;                                                                       \
        for (int i = 0; i < count; i++)                                                            \
            if (int status = product(ta, tb, m, n, k, alpha, a + i * sa, la, b + i * sb, lb, beta, \
                                     c + i * sc, lc))                                              \
                return status;                                                                     \
        return DONE;                                                                               \
    }                                                                                              \
    API cublas##L##gemmBatched(Handle*, int ta, int tb, int m, int n, int k, const R* alpha,       \
                               const R** a, int la, const R** b, int lb, const R* beta, R** c,     \
                               int lc, int count) {                                                \
        counters.products++;                                                                       \
        for (int i = 0; i < count; i++)                                                            \
            if (int status = product(ta, tb, m, n, k, alpha, a[i], la, b[i], lb, beta, c[i], lc))  \
                return status;                                                                     \
        return DONE;                                                                               \
    }                                                                                              \
    API cublas##L##gemm_v2(Handle* h, int ta, int tb, int m, int n, int k, const R* alpha,         \
                           const R* a, int la, const R* b, int lb, const R* beta, R* c, int lc) {  \
        return cublas##L##gemmStridedBatched(h, ta, tb, m, n, k, alpha, a, la, 0, b, lb, 0, beta,  \
                                             c, lc, 0, 1);                                         \
    }                                                                                              \
    API cublas##L##geam(Handle*, int ta, int tb, int m, int n, const R* alpha, const R* a, int la, \
                        const R* beta, const R* b, int lb, R* c, int lc) {                         \
        counters.launches++;                                                                       \
        for (Int j = 0; j < n; j++)                                                                \
            for (Int i = 0; i < m; i++) {                                                          \
                R x = *alpha ? *alpha * a[ta ? i * la + j : j * la + i] : 0,                       \
                  y = *beta ? *beta * b[tb ? i * lb + j : j * lb + i] : 0;                         \
                c[j * lc + i] = x + y;                                                             \
            }                                                                                      \
        return DONE;                                                                               \
    }                                                                                              \
    API cublas##L##trsm_v2(Handle*, int right, int uplo, int op, int unit, int m, int n,           \
                           const R* alpha, const R* a, int la, R* b, int lb) {                     \
        counters.solves++;                                                                         \
        char s = "LR"[right], u = half(uplo), t = transposition(op), d = "NU"[unit];               \
        Int m_ = m, n_ = n, la_ = la, lb_ = lb;                                                    \
        scipy_##l##trsm_64_(&s, &u, &t, &d, &m_, &n_, alpha, a, &la_, b, &lb_);                    \
        return DONE;                                                                               \
    }
PRODUCTS(S, s, float)
PRODUCTS(D, d, double)
API cublasGemmStridedBatchedEx(Handle* h, int ta, int tb, int m, int n, int k, const void* alpha,
                               const void* a, int at, int la, long long sa, const void* b, int bt,
                               int lb, long long sb, const void* beta, void* c, int ct, int lc,
                               long long sc, int count, int, int) {
    if (at == FLOAT32 && bt == FLOAT32 && ct == FLOAT32)
        return cublasSgemmStridedBatched(h, ta, tb, m, n, k, (float*)alpha, (float*)a, la, sa,
                                         (float*)b, lb, sb, (float*)beta, (float*)c, lc, sc, count);
    if (at == FLOAT64 && bt == FLOAT64 && ct == FLOAT64)
        return cublasDgemmStridedBatched(h, ta, tb, m, n, k, (double*)alpha, (double*)a, la, sa,
                                         (double*)b, lb, sb, (double*)beta, (double*)c, lc, sc,
                                         count);
    return NOT_SUPPORTED;
}
API cublasGemmEx(Handle* h, int ta, int tb, int m, int n, int k, const void* alpha, const void* a,
                 int at, int la, const void* b, int bt, int lb, const void* beta, void* c, int ct,
                 int lc, int compute, int algorithm) {
    return cublasGemmStridedBatchedEx(h, ta, tb, m, n, k, alpha, a, at, la, 0, b, bt, lb, 0, beta,
                                      c, ct, lc, 0, 1, compute, algorithm);
}
API cublasSgemmEx(Handle* h, int ta, int tb, int m, int n, int k, const float* alpha, const void* a,
                  int at, int la, const void* b, int bt, int lb, const float* beta, void* c, int ct,
                  int lc) {
    return cublasGemmEx(h, ta, tb, m, n, k, alpha, a, at, la, b, bt, lb, beta, c, ct, lc, 0, 0);
}

// ---- cuSOLVER, and cuBLAS for many small systems
// LAPACK brings its own memory where cuSOLVER's is too small for it
#define SOLVERS(L, l, R)                                                                           \
    static int triangular(int m, int n, R* a, Int la, int* pivots) {                               \
        Int m_ = m, n_ = n, info;                                                                  \
        std::vector<Int> p(std::min(m, n));                                                        \
        scipy_##l##getrf_64_(&m_, &n_, a, &la, p.data(), &info);                                   \
        std::copy(p.begin(), p.end(), pivots);                                                     \
        return info;                                                                               \
    }                                                                                              \
    static void back(int op, int n, int r, const R* a, Int la, const int* pivots, R* b, Int lb) {  \
        char t = transposition(op);                                                                \
        Int n_ = n, r_ = r, info;                                                                  \
        std::vector<Int> p(pivots, pivots + n);                                                    \
        scipy_##l##getrs_64_(&t, &n_, &r_, a, &la, p.data(), b, &lb, &info);                       \
    }                                                                                              \
    API cusolverDn##L##getrf_bufferSize(Handle*, int, int, R*, int, int* size) {                   \
        return *size = 1, DONE;                                                                    \
    }                                                                                              \
    API cusolverDn##L##getrf(Handle*, int m, int n, R* a, int la, R*, int* pivots, int* info) {    \
        return counters.solves++, *info = triangular(m, n, a, la, pivots), DONE;                   \
    }                                                                                              \
    API cusolverDn##L##getrs(Handle*, int op, int n, int r, const R* a, int la, const int* pivots, \
                             R* b, int lb, int* info) {                                            \
        return counters.solves++, back(op, n, r, a, la, pivots, b, lb), *info = 0, DONE;           \
    }                                                                                              \
    API cublas##L##getrfBatched(Handle*, int n, R** a, int la, int* pivots, int* info,             \
                                int count) {                                                       \
        counters.solves++;                                                                         \
        for (int i = 0; i < count; i++)                                                            \
            info[i] = triangular(n, n, a[i], la, pivots + (size_t)i * n);                          \
        return DONE;                                                                               \
    }                                                                                              \
    API cublas##L##getrsBatched(Handle*, int op, int n, int r, const R** a, int la,                \
                                const int* pivots, R** b, int lb, int* info, int count) {          \
        counters.solves++;                                                                         \
        for (int i = 0; i < count; i++)                                                            \
            back(op, n, r, a[i], la, pivots + (size_t)i * n, b[i], lb);                            \
        return *info = 0, DONE;                                                                    \
    }                                                                                              \
    API cublas##L##getriBatched(Handle*, int n, const R** a, int la, const int* pivots, R** c,     \
                                int lc, int* info, int count) {                                    \
        counters.solves++;                                                                         \
        for (int i = 0; i < count; i++) {                                                          \
            Int n_ = n, lc_ = lc, size = 64 * (Int)n, status;                                      \
            std::vector<Int> p(pivots + (size_t)i * n, pivots + (size_t)(i + 1) * n);              \
            std::vector<R> work(size);                                                             \
            for (int j = 0; j < n; j++)                                                            \
                std::memcpy(c[i] + (size_t)j * lc, a[i] + (size_t)j * la, n * sizeof(R));          \
            scipy_##l##getri_64_(&n_, c[i], &lc_, p.data(), work.data(), &size, &status);          \
            info[i] = status;                                                                      \
        }                                                                                          \
        return DONE;                                                                               \
    }                                                                                              \
    API cusolverDn##L##potrf_bufferSize(Handle*, int, int, R*, int, int* size) {                   \
        return *size = 1, DONE;                                                                    \
    }                                                                                              \
    API cusolverDn##L##potrf(Handle*, int uplo, int n, R* a, int la, R*, int, int* info) {         \
        counters.solves++;                                                                         \
        char u = half(uplo);                                                                       \
        Int n_ = n, la_ = la, status;                                                              \
        scipy_##l##potrf_64_(&u, &n_, a, &la_, &status);                                           \
        return *info = status, DONE;                                                               \
    }                                                                                              \
    API cusolverDn##L##geqrf_bufferSize(Handle*, int, int n, R*, int, int* size) {                 \
        return *size = 64 * n, DONE;                                                               \
    }                                                                                              \
    API cusolverDn##L##geqrf(Handle*, int m, int n, R* a, int la, R* tau, R* work, int size,       \
                             int* info) {                                                          \
        counters.solves++;                                                                         \
        Int m_ = m, n_ = n, la_ = la, size_ = size, status;                                        \
        scipy_##l##geqrf_64_(&m_, &n_, a, &la_, tau, work, &size_, &status);                       \
        return *info = status, DONE;                                                               \
    }                                                                                              \
    API cusolverDn##L##orgqr_bufferSize(Handle*, int, int n, int, const R*, int, const R*,         \
                                        int* size) {                                               \
        return *size = 64 * n, DONE;                                                               \
    }                                                                                              \
    API cusolverDn##L##orgqr(Handle*, int m, int n, int k, R* a, int la, const R* tau, R* work,    \
                             int size, int* info) {                                                \
        counters.solves++;                                                                         \
        Int m_ = m, n_ = n, k_ = k, la_ = la, size_ = size, status;                                \
        scipy_##l##orgqr_64_(&m_, &n_, &k_, a, &la_, tau, work, &size_, &status);                  \
        return *info = status, DONE;                                                               \
    }                                                                                              \
    API cusolverDn##L##syevd_bufferSize(Handle*, int, int, int, const R*, int, const R*,           \
                                        int* size) {                                               \
        return *size = 1, DONE;                                                                    \
    }                                                                                              \
    API cusolverDn##L##syevd(Handle*, int vectors, int uplo, int n, R* a, int la, R* values, R*,   \
                             int, int* info) {                                                     \
        counters.solves++;                                                                         \
        char v = "NV"[vectors], u = half(uplo);                                                    \
        Int n_ = n, la_ = la, reals = 1 + 6 * (Int)n + 2 * (Int)n * n, integers = 3 + 5 * (Int)n,  \
            status;                                                                                \
        std::vector<R> work(reals);                                                                \
        std::vector<Int> more(integers);                                                           \
        scipy_##l##syevd_64_(&v, &u, &n_, a, &la_, values, work.data(), &reals, more.data(),       \
                             &integers, &status);                                                  \
        return *info = status, DONE;                                                               \
    }                                                                                              \
    API cusolverDn##L##gesvd_bufferSize(Handle*, int, int, int* size) { return *size = 1, DONE; }  \
    API cusolverDn##L##gesvd(Handle*, signed char left, signed char right, int m, int n, R* a,     \
                             int la, R* s, R* u, int lu, R* v, int lv, R*, int, R*, int* info) {   \
        counters.solves++;                                                                         \
        char x = left, y = right;                                                                  \
        Int m_ = m, n_ = n, la_ = la, lu_ = std::max(lu, 1), lv_ = std::max(lv, 1),                \
            size = 64 * ((Int)m + n), status;                                                      \
        std::vector<R> work(size);                                                                 \
        scipy_##l##gesvd_64_(&x, &y, &m_, &n_, a, &la_, s, u, &lu_, v, &lv_, work.data(), &size,   \
                             &status);                                                             \
        return *info = status, DONE;                                                               \
    }
SOLVERS(S, s, float)
SOLVERS(D, d, double)
API cusolverDnCreateParams(Handle** params) { return *params = new Handle{}, DONE; }
API cusolverDnDestroyParams(Handle* params) { return delete params, DONE; }
API cusolverDnXsyevd_bufferSize(Handle*, Handle*, int, int, int64_t, int, const void*, int64_t, int,
                                const void*, int, size_t* there, size_t* here) {
    return *there = *here = 1, DONE;
}
API cusolverDnXsyevd(Handle* h, Handle*, int vectors, int uplo, int64_t n, int type, void* a,
                     int64_t la, int, void* values, int, void*, size_t, void*, size_t, int* info) {
    if (type == FLOAT32)
        return cusolverDnSsyevd(h, vectors, uplo, n, (float*)a, la, (float*)values, nullptr, 0,
                                info);
    if (type == FLOAT64)
        return cusolverDnDsyevd(h, vectors, uplo, n, (double*)a, la, (double*)values, nullptr, 0,
                                info);
    return NOT_SUPPORTED;
}

// ---- cuSPARSE: compressed rows with 32-bit indices; dense matrices are stored by columns
struct Rows {
    Int rows, cols, nonzero;
    int *offsets, *columns;
    void* values;
    int type;
};
struct Dense {
    Int rows, cols, ld;
    void* values;
    int type;
};
static const int INT32 = 2, BY_COLUMNS = 1;
#define BOTH_TYPES(type, f, ...) \
    if (type == FLOAT32) f<float>(__VA_ARGS__); \
    else if (type == FLOAT64) f<double>(__VA_ARGS__); \
    else return NOT_SUPPORTED;
API cusparseCreateMatDescr(Handle** d) { return *d = new Handle{}, DONE; }
API cusparseDestroyMatDescr(Handle* d) { return delete d, DONE; }
API cusparseSetMatType(Handle*, int) { return DONE; }
API cusparseSetMatIndexBase(Handle*, int) { return DONE; }
extern "C" const char* cusparseGetErrorName(int) { return "error of the emulated card"; }
extern "C" const char* cusparseGetErrorString(int) {
    return "see the cusparseStatus_t of this number";
}
API cusparseCreateCsr(Rows** s, Int rows, Int cols, Int nonzero, int* offsets, int* columns,
                      void* values, int ot, int ct, int, int type) {
    return ot == INT32 && ct == INT32
               ? (*s = new Rows{rows, cols, nonzero, offsets, columns, values, type}, DONE)
               : NOT_SUPPORTED;
}
API cusparseDestroySpMat(Rows* s) { return delete s, DONE; }
API cusparseCsrSetPointers(Rows* s, int* offsets, int* columns, void* values) {
    return s->offsets = offsets, s->columns = columns, s->values = values, DONE;
}
API cusparseSpMatGetSize(Rows* s, Int* rows, Int* cols, Int* nonzero) {
    return *rows = s->rows, *cols = s->cols, *nonzero = s->nonzero, DONE;
}
API cusparseCreateDnMat(Dense** d, Int rows, Int cols, Int ld, void* values, int type, int order) {
    return order == BY_COLUMNS ? (*d = new Dense{rows, cols, ld, values, type}, DONE)
                               : NOT_SUPPORTED;
}
API cusparseDestroyDnMat(Dense* d) { return delete d, DONE; }
API cusparseDenseToSparse_bufferSize(Handle*, Dense*, Rows*, int, size_t* size) {
    return *size = 8, DONE;
}

template <class R>
static void compress(const Dense* d, Rows* s, bool count) {
    Int k = 0;
    for (Int i = 0; i < d->rows; i++) {
        if (count) s->offsets[i] = k;
        for (Int j = 0; j < d->cols; j++)
            if (R x = ((R*)d->values)[j * d->ld + i]) {
                if (!count) s->columns[k] = j, ((R*)s->values)[k] = x;
                k++;
            }
    }
    if (count) s->offsets[d->rows] = s->nonzero = k;
}
API cusparseDenseToSparse_analysis(Handle*, Dense* d, Rows* s, int, void*) {
    counters.launches++;
    BOTH_TYPES(d->type, compress, d, s, true)
    return DONE;
}
API cusparseDenseToSparse_convert(Handle*, Dense* d, Rows* s, int, void*) {
    counters.launches++;
    BOTH_TYPES(d->type, compress, d, s, false)
    return DONE;
}
API cusparseXcsr2coo(Handle*, const int* offsets, int, int rows, int* to, int) {
    counters.launches++;
    for (int i = 0; i < rows; i++) std::fill(to + offsets[i], to + offsets[i + 1], i);
    return DONE;
}
API cusparseXcoo2csr(Handle*, const int* from, int nonzero, int rows, int* offsets, int) {
    counters.launches++;
    for (int i = 0; i <= rows; i++) offsets[i] = std::lower_bound(from, from + nonzero, i) - from;
    return DONE;
}
template <class R>
static void multiply(bool ta, bool tb, const void* alpha, const Rows* a, const Dense* b,
                     const void* beta, Dense* c) {
    auto *x = (R*)b->values, *y = (R*)c->values;
    R scale = *(R*)alpha, keep = *(R*)beta;
    for (Int j = 0; j < c->cols; j++) {
        for (Int i = 0; i < c->rows; i++) y[j * c->ld + i] = keep ? keep * y[j * c->ld + i] : 0;
        for (Int i = 0; i < a->rows; i++)
            for (int k = a->offsets[i]; k < a->offsets[i + 1]; k++) {
                Int to = ta ? a->columns[k] : i, from = ta ? i : a->columns[k];
                y[j * c->ld + to] +=
                    scale * ((R*)a->values)[k] * x[tb ? from * b->ld + j : j * b->ld + from];
            }
    }
}
API cusparseSpMM_bufferSize(Handle*, int, int, const void*, Rows*, Dense*, const void*, Dense*, int,
                            int, size_t* size) {
    return *size = 8, DONE;
}
API cusparseSpMM(Handle*, int ta, int tb, const void* alpha, Rows* a, Dense* b, const void* beta,
                 Dense* c, int, int, void*) {
    counters.products++;
    BOTH_TYPES(a->type, multiply, ta, tb, alpha, a, b, beta, c)
    return DONE;
}
