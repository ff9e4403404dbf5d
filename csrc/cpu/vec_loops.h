// The loops that the compiler vectorises by itself, for whatever instruction set XMEMK_TARGET names. Included by each
// vec_*.cpp inside its own namespace, with <cstdint>, <cstring> and <limits>.

XMEMK_TARGET inline float largest(const float* score, int64_t count) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  constexpr int64_t kLanes = 32;
  float best[kLanes];
  for (float& b : best) b = -infinity;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      const float s = score[i + j] < infinity ? score[i + j] : -infinity;  // NaN compares false
      best[j] = s > best[j] ? s : best[j];
    }
  }
  for (; i < count; ++i) {
    if (score[i] < infinity && score[i] > best[0]) best[0] = score[i];
  }
  for (const float b : best) best[0] = b > best[0] ? b : best[0];
  return best[0];
}

// Cody and Waite's reduction to |r| <= ln 2 / 2 and a polynomial of degree 6: below 2 units in the last place.
XMEMK_TARGET inline float exponential(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, left in the low bits
  const float y = x < -86.0f ? -86.0f : x;
  const float shifted = y * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (y - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  int32_t exponent, bits;
  std::memcpy(&exponent, &shifted, 4);
  std::memcpy(&bits, &p, 4);
  bits += static_cast<int32_t>(static_cast<uint32_t>(exponent) << 23);
  std::memcpy(&p, &bits, 4);
  return x < -86.0f ? 0.0f : p;
}

XMEMK_TARGET inline float exponentials(float* score, int64_t count, float shift) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  constexpr int64_t kLanes = 32;
  float sum[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      const float s = score[i + j] < infinity ? score[i + j] - shift : -infinity;
      const float e = exponential(s);
      score[i + j] = e;
      sum[j] += e;
    }
  }
  for (; i < count; ++i) {
    score[i] = exponential(score[i] < infinity ? score[i] - shift : -infinity);
    sum[0] += score[i];
  }
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) sum[j] += sum[j + half];
  }
  return sum[0];
}

XMEMK_TARGET inline void add_scaled(float* __restrict y, const float* __restrict x, float a, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] += a * x[i];
}

// Integers in the order of the numbers; 0.0 and -0.0 are one.
XMEMK_TARGET inline void order_keys(const float* value, int64_t count, int32_t* key) {
  for (int64_t i = 0; i < count; ++i) {
    const float v = value[i] + 0.0f;
    int32_t bits;
    std::memcpy(&bits, &v, 4);
    key[i] = bits ^ ((bits >> 31) & 0x7fffffff);
  }
}

XMEMK_TARGET inline int64_t count_above(const int32_t* key, int64_t count, int32_t bar) {
  int32_t above = 0;
  for (int64_t i = 0; i < count; ++i) above += key[i] > bar;
  return above;
}

// sum e (k - q)^2
XMEMK_TARGET inline float distance(const float* k, const float* q, const float* e, int64_t count) {
  constexpr int64_t kLanes = 16;
  float sum[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      const float d = k[i + j] - q[i + j];
      sum[j] += e[i + j] * d * d;
    }
  }
  for (; i < count; ++i) sum[0] += e[i] * (k[i] - q[i]) * (k[i] - q[i]);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) sum[j] += sum[j + half];
  }
  return sum[0];
}

XMEMK_TARGET inline void affinities(float* __restrict score, const float* __restrict shift,
                                    const float* __restrict scale, int64_t count) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < count; ++i) {
    const float s = score[i] < infinity ? score[i] - shift[i] : -infinity;
    score[i] = scale[i] * exponential(s);
  }
}

XMEMK_TARGET inline void score_gradients(float* __restrict d, const float* __restrict w, float more,
                                         const float* __restrict less, int64_t count) {
  for (int64_t i = 0; i < count; ++i) d[i] = w[i] * (d[i] + more - less[i]);
}

// sum (a - b) c
XMEMK_TARGET inline float dot_of_difference(const float* a, const float* b, const float* c, int64_t count) {
  constexpr int64_t kLanes = 32;
  float sum[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) sum[j] += (a[i + j] - b[i + j]) * c[i + j];
  }
  for (; i < count; ++i) sum[0] += (a[i] - b[i]) * c[i];
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) sum[j] += sum[j + half];
  }
  return sum[0];
}

XMEMK_TARGET inline float dot_add_scaled(float* __restrict y, const float* __restrict x, float a,
                                         const float* __restrict v, int64_t count) {
  constexpr int64_t kLanes = 32;
  float sum[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      y[i + j] += a * x[i + j];
      sum[j] += v[i + j] * x[i + j];
    }
  }
  for (; i < count; ++i) {
    y[i] += a * x[i];
    sum[0] += v[i] * x[i];
  }
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) sum[j] += sum[j + half];
  }
  return sum[0];
}

XMEMK_TARGET inline void largest_magnitudes(const float* x, int64_t rows, int64_t stride, int64_t count, float* out) {
  constexpr int32_t kInfinity = 0x7f800000;
  constexpr int64_t kColumns = 64;
  for (int64_t first = 0; first < count; first += kColumns) {
    const int64_t columns = count - first < kColumns ? count - first : kColumns;
    int32_t largest[kColumns] = {};  // bits of numbers without their sign: integers in their order, NaN above infinity
    for (int64_t r = 0; r < rows; ++r) {
      int32_t bits[kColumns];
      std::memcpy(bits, x + r * stride + first, columns * sizeof(float));
      for (int64_t i = 0; i < columns; ++i) {
        const int32_t size = bits[i] & 0x7fffffff;
        largest[i] = size > largest[i] ? size : largest[i];
      }
    }
    for (int64_t i = 0; i < columns; ++i) largest[i] = largest[i] > kInfinity ? kInfinity : largest[i];
    std::memcpy(out + first, largest, columns * sizeof(float));
  }
}
