// The tiles of the portable products, as the kernel table has them: what frozen_linear.cu, ride.cu and segments.cu have in common.
#pragma once

#include "tile/gemm_fma.cuh"
#include "tile/gemm_mma.cuh"

#ifndef GEMM_LARGE
#error "GEMM_LARGE comes from the kernel table"
#endif
#ifndef GEMM_SMALL
#error "GEMM_SMALL comes from the kernel table"
#endif
#ifndef GEMM_STEP
#error "GEMM_STEP comes from the kernel table"
#endif
#ifndef GEMM_STAGES
#error "GEMM_STAGES comes from the kernel table"
#endif
#ifndef GEMM_LARGE_SHARED
#error "GEMM_LARGE_SHARED comes from the kernel table"
#endif
#ifndef GEMM_SMALL_SHARED
#error "GEMM_SMALL_SHARED comes from the kernel table"
#endif
#ifndef GEMM_F32_STEP
#error "GEMM_F32_STEP comes from the kernel table"
#endif

namespace tile {

template <Layout LAYOUT, typename T, typename Out = T>
using Large = MmaGemm<LAYOUT, T, Out, GEMM_LARGE, GEMM_LARGE, GEMM_STEP, 64, 32, GEMM_STAGES>;
template <Layout LAYOUT, typename T, typename Out = T>
using Small = MmaGemm<LAYOUT, T, Out, GEMM_SMALL, GEMM_SMALL, GEMM_STEP, 32, 32, GEMM_STAGES>;
template <Layout LAYOUT>
using Single = FmaGemm<LAYOUT, GEMM_SMALL, GEMM_SMALL, GEMM_F32_STEP>;

}  // namespace tile

extern __shared__ __align__(16) uint4 ring[];
