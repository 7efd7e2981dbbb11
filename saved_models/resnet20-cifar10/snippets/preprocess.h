// Pictures for an exported resnet20: standard C++17, no library.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

// Of the model's input, and what an image is resized to before it is cut.
constexpr int kHeight = 32, kWidth = 32, kChannels = 3;
constexpr int64_t kResizeHeight = 32, kResizeWidth = 32;

constexpr double kSupport = 1;
inline double Kernel(double x) { return std::max(0.0, 1 - std::abs(x)); }

struct Tap {
  int start;
  std::vector<double> weights;
};

// Which pixels of a line make each of `size` new ones, and with what weights.
inline std::vector<Tap> Taps(int length, int64_t target, int size) {
  const double scale = static_cast<double>(length) / target;
  const double reach = std::max(scale, 1.0);
  const int64_t spare = target - size, half = (spare - (spare & 1)) / 2;
  const int64_t first = half + (spare & 1) * (half & 1);
  std::vector<Tap> taps;
  for (int index = 0; index < size; ++index) {
    const double centre = (static_cast<double>(first + index) + 0.5) * scale;
    const int start = std::max(0, static_cast<int>(centre - kSupport * reach + 0.5));
    const int end = std::min(length, static_cast<int>(centre + kSupport * reach + 0.5));
    Tap tap{start, {}};
    double sum = 0;
    for (int at = start; at < end; ++at) {
      tap.weights.push_back(Kernel((at + 0.5 - centre) / reach));
      sum += tap.weights.back();
    }
    for (double& weight : tap.weights) weight /= sum;
    taps.push_back(tap);
  }
  return taps;
}

inline uint8_t Byte(double value) {
  return static_cast<uint8_t>(std::clamp(std::floor(value + 0.5), 0.0, 255.0));
}

inline int Level(const uint8_t* rgb, int c) { return rgb[c]; }

// Resize, cut the centre, RGB from 0 to 255, nothing else: the graph normalises.
// `rgb` is an upright image, height x width x 3; the answer is kHeight x kWidth x
// kChannels.
inline std::vector<uint8_t> Prepare(const uint8_t* rgb, int width, int height) {
  const int64_t across = std::max(width * kResizeHeight / height, kResizeWidth);
  const int64_t down = std::max(height * kResizeWidth / width, kResizeHeight);
  const auto columns = Taps(width, across, kWidth), rows = Taps(height, down, kHeight);
  const size_t line = kWidth * kChannels;
  // Only the rows that the crop comes from take memory.
  const int top = rows.front().start;
  const int bottom = rows.back().start + static_cast<int>(rows.back().weights.size());
  std::vector<uint8_t> wide((bottom - top) * line), pixels(kHeight * line);
  for (int y = top; y < bottom; ++y)
    for (int x = 0; x < kWidth; ++x)
      for (int c = 0; c < kChannels; ++c) {
        double sum = 0;
        for (size_t k = 0; k < columns[x].weights.size(); ++k)
          sum += columns[x].weights[k] *
                 Level(rgb + (static_cast<size_t>(y) * width + columns[x].start + k) * 3, c);
        wide[(y - top) * line + x * kChannels + c] = Byte(sum);
      }
  for (int y = 0; y < kHeight; ++y)
    for (size_t x = 0; x < line; ++x) {
      double sum = 0;
      for (size_t k = 0; k < rows[y].weights.size(); ++k)
        sum += rows[y].weights[k] * wide[(rows[y].start - top + k) * line + x];
      pixels[y * line + x] = Byte(sum);
    }
  return pixels;
}
