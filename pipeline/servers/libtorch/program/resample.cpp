// The algorithm of Pillow's Resample.c for 8 bits per channel: the filter is as wide as the reduction, its weights are
// rounded to 22 bits, and what lies between the horizontal and the vertical pass is rounded to 8 bits.
// Nearest is that of its Geometry.c. Checked bit for bit against Pillow 12.3.0 and 13.0.0.
#include "resample.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "settings.hpp"

namespace {

constexpr int kPrecisionBits = 32 - 8 - 2;
constexpr double kPi = 3.14159265358979323846;

double triangle(double x) {
  x = std::fabs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

double cubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

double sinc(double x) {
  if (x == 0.0) return 1.0;
  x *= kPi;
  return std::sin(x) / x;
}

double lanczos(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

struct Filter {
  double (*weight)(double);
  double support;
};

Filter filter_named(std::string_view name) {
  if (name == "bilinear") return {triangle, 1.0};
  if (name == "bicubic") return {cubic, 2.0};
  if (name == "lanczos") return {lanczos, 3.0};
  throw std::invalid_argument("no such filter: " + std::string(name));
}

// For each place of the result: where it looks, and how much each of those counts.
struct Weights {
  int reach;  // most places that one looks at
  std::vector<int> first, count;
  std::vector<int> values;  // `reach` for each place
};

Weights weights(int from, int to, const Filter& filter) {
  const double scale = static_cast<double>(from) / to;
  const double filter_scale = std::max(scale, 1.0);
  const double support = filter.support * filter_scale;
  Weights result;
  result.reach = static_cast<int>(std::ceil(support)) * 2 + 1;
  result.values.assign(static_cast<std::size_t>(to) * result.reach, 0);
  std::vector<double> exact(result.reach);
  for (int place = 0; place < to; ++place) {
    const double center = (place + 0.5) * scale;
    const int first = std::max(static_cast<int>(center - support + 0.5), 0);
    const int count = std::min(static_cast<int>(center + support + 0.5), from) - first;
    double sum = 0.0;
    for (int step = 0; step < count; ++step) {
      exact[step] = filter.weight((step + first - center + 0.5) * (1.0 / filter_scale));
      sum += exact[step];
    }
    for (int step = 0; step < count; ++step) {
      const double share = (sum != 0.0 ? exact[step] / sum : exact[step]) * (1 << kPrecisionBits);
      result.values[static_cast<std::size_t>(place) * result.reach + step] =
          static_cast<int>(share < 0 ? share - 0.5 : share + 0.5);
    }
    result.first.push_back(first);
    result.count.push_back(count);
  }
  return result;
}

std::uint8_t clipped(int sum) { return static_cast<std::uint8_t>(std::clamp(sum >> kPrecisionBits, 0, 255)); }

Pixels blank(int height, int width, int channels) {
  return {height, width, channels, std::vector<std::uint8_t>(static_cast<std::size_t>(height) * width * channels)};
}

template <int kChannels>
Pixels across(const Pixels& image, int width, const Filter& filter) {
  const Weights weighted = weights(image.width, width, filter);
  Pixels result = blank(image.height, width, kChannels);
  for (int y = 0; y < image.height; ++y) {
    const std::uint8_t* row = &image.values[static_cast<std::size_t>(y) * image.width * kChannels];
    std::uint8_t* out = &result.values[static_cast<std::size_t>(y) * width * kChannels];
    for (int x = 0; x < width; ++x) {
      const int* weight = &weighted.values[static_cast<std::size_t>(x) * weighted.reach];
      const std::uint8_t* in = row + static_cast<std::size_t>(weighted.first[x]) * kChannels;
      int sums[kChannels];
      std::fill_n(sums, kChannels, 1 << (kPrecisionBits - 1));
      for (int step = 0; step < weighted.count[x]; ++step)
        for (int channel = 0; channel < kChannels; ++channel) sums[channel] += *in++ * weight[step];
      for (int channel = 0; channel < kChannels; ++channel) *out++ = clipped(sums[channel]);
    }
  }
  return result;
}

Pixels down(const Pixels& image, int height, const Filter& filter) {
  const Weights weighted = weights(image.height, height, filter);
  Pixels result = blank(height, image.width, image.channels);
  const std::size_t length = static_cast<std::size_t>(image.width) * image.channels;
  std::vector<int> sums(length);
  for (int y = 0; y < height; ++y) {
    std::fill(sums.begin(), sums.end(), 1 << (kPrecisionBits - 1));
    for (int step = 0; step < weighted.count[y]; ++step) {
      const int weight = weighted.values[static_cast<std::size_t>(y) * weighted.reach + step];
      const std::uint8_t* row = &image.values[(weighted.first[y] + step) * length];
      for (std::size_t at = 0; at < length; ++at) sums[at] += row[at] * weight;
    }
    std::transform(sums.begin(), sums.end(), &result.values[y * length], clipped);
  }
  return result;
}

// Where each place of the result looks; -1 where rounding led outside. Added up, not multiplied, as Pillow does.
std::vector<int> nearest_places(int from, int to) {
  const double scale = static_cast<double>(from) / to;
  std::vector<int> places;
  double at = scale * 0.5;
  for (int place = 0; place < to; ++place, at += scale) places.push_back(at < from ? static_cast<int>(at) : -1);
  return places;
}

Pixels nearest(const Pixels& image, int height, int width) {
  const std::vector<int> rows = nearest_places(image.height, height), columns = nearest_places(image.width, width);
  Pixels result = blank(height, width, image.channels);
  std::uint8_t* out = result.values.data();
  for (const int row : rows) {
    for (const int column : columns) {
      const std::size_t at = (static_cast<std::size_t>(std::max(row, 0)) * image.width + std::max(column, 0));
      for (int channel = 0; channel < image.channels; ++channel, ++out)
        if (row >= 0 && column >= 0) *out = image.values[at * image.channels + channel];
    }
  }
  return result;
}

// Which pass comes first decides roundings, and is not the same in all versions of Pillow.
bool height_first(const Pixels& image, int height, int width) {
  if (settings::pillow >= 1300) return image.height - height > 2 * std::max(image.width - width, 0);
  if (settings::pillow >= 1202) return image.height > 100 * image.width && height < image.height;
  return false;
}

}  // namespace

Pixels resized(const Pixels& image, int height, int width, std::string_view filter) {
  if (height == image.height && width == image.width) return image;
  if (filter == "nearest") return nearest(image, height, width);
  const Filter chosen = filter_named(filter);
  const auto widened = [&](const Pixels& from) {
    if (width == from.width) return from;
    return from.channels == 1 ? across<1>(from, width, chosen) : across<3>(from, width, chosen);
  };
  const auto heightened = [&](const Pixels& from) { return height == from.height ? from : down(from, height, chosen); };
  return height_first(image, height, width) ? widened(heightened(image)) : heightened(widened(image));
}
