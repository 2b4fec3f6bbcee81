// Elementwise functions of activation.cu, and of the products that apply one to what they have made.
#pragma once

#include <cstdint>

namespace tile {

// The order of `enum Activation` in src/ops/activation/mod.rs.
enum Activation : uint32_t { RELU, GELU, GELU_TANH, QUICK_GELU, SILU };

constexpr float ROOT = 0.7978845608028654f;      // √(2/π)
constexpr float CUBIC = 0.044715f;
constexpr float QUICK = 1.702f;
constexpr float DENSITY = 0.3989422804014327f;   // 1/√(2π)
constexpr float ROOT_HALF = 0.7071067811865476f;

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <Activation A>
__device__ __forceinline__ float value(float x) {
    // Written so that NaN passes.
    if constexpr (A == RELU) return x < 0.0f ? 0.0f : x;
    if constexpr (A == GELU) return 0.5f * x * (1.0f + erff(x * ROOT_HALF));
    if constexpr (A == GELU_TANH) return 0.5f * x * (1.0f + tanhf(ROOT * (x + CUBIC * x * x * x)));
    if constexpr (A == QUICK_GELU) return x * sigmoid(QUICK * x);
    if constexpr (A == SILU) return x * sigmoid(x);
}

template <Activation A>
__device__ __forceinline__ float gradient(float dy, float x) {
    if constexpr (A == RELU) return x <= 0.0f ? 0.0f : dy;
    if constexpr (A == GELU) {
        const float density = DENSITY * expf(-0.5f * x * x);
        return dy * (0.5f * (1.0f + erff(x * ROOT_HALF)) + x * density);
    }
    if constexpr (A == GELU_TANH) {
        const float t = tanhf(ROOT * (x + CUBIC * x * x * x));
        const float slope = ROOT * (1.0f + 3.0f * CUBIC * x * x);
        return dy * (0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * slope);
    }
    if constexpr (A == QUICK_GELU || A == SILU) {
        const float u = A == SILU ? x : QUICK * x;
        const float s = sigmoid(u);
        return dy * (s + u * s * (1.0f - s));
    }
}

// What an epilogue applies: nothing, or 1 + an Activation.
constexpr uint32_t NO_ACTIVATION = 0;

__device__ __forceinline__ float applied(uint32_t which, float x) {
    switch (which - 1) {
        case RELU: return value<RELU>(x);
        case GELU: return value<GELU>(x);
        case GELU_TANH: return value<GELU_TANH>(x);
        case QUICK_GELU: return value<QUICK_GELU>(x);
        default: return value<SILU>(x);
    }
}

}  // namespace tile
