// What a kernel knows of the card, and what the libraries share.
#pragma once
#include <vector_types.h>

struct EmulatedCard {
    enum Group { WARP, BLOCK };
    uint3 thread, block;  // the thread that runs, and its block
    dim3 threads, blocks;  // how many of them
    char* shared;  // the memory of a block whose size the launch says
    unsigned long long* words;  // 32 for each warp
    void (*wait)(Group);
    unsigned (*live)();  // the threads of this warp that still run, as bits
};
extern "C" EmulatedCard* emulated_card;

struct EmulatedCounters {
    // kernels; calls of cuBLAS and cuSPARSE that multiply; factorisations and what uses them
    long launches, products, solves;
    // copies to the card, to the host, within the card; memory that is set
    long uploads, downloads, moves, fills;
    long waits, allocations, compilations;
};
extern "C" EmulatedCounters emulated_counters;
