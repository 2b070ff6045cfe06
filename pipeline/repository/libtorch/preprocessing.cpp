#include "preprocessing.hpp"

#include <algorithm>
#include <cmath>

#include "resample.hpp"
#include "settings.hpp"

namespace {

// Where a centre crop starts; negative where a border is added. Halves go to the even number.
int margin(int size, int wanted) {
  return size >= wanted ? static_cast<int>(std::nearbyint((size - wanted) / 2.0)) : -((wanted - size) / 2);
}

// What lies outside the image is black.
Pixels cropped(const Pixels& image, int height, int width) {
  const int top = margin(image.height, height), left = margin(image.width, width);
  Pixels result{height, width, image.channels, {}};
  result.values.resize(static_cast<std::size_t>(height) * width * image.channels);
  const int first = std::max(0, -left), last = std::min(width, image.width - left);
  for (int y = std::max(0, -top); y < std::min(height, image.height - top); ++y) {
    const auto* row = &image.values[(static_cast<std::size_t>(y + top) * image.width + first + left) * image.channels];
    std::copy_n(row, static_cast<std::size_t>(last - first) * image.channels,
                &result.values[(static_cast<std::size_t>(y) * width + first) * image.channels]);
  }
  return result;
}

}  // namespace

Pixels sized(const Pixels& image) {
  int height = settings::resize_height, width = settings::resize_width;
  if (settings::resize_shorter > 0) {
    const int shorter = std::min(image.height, image.width), longer = std::max(image.height, image.width);
    const int other = std::max(1, static_cast<int>(static_cast<double>(settings::resize_shorter) * longer / shorter));
    height = image.height <= image.width ? settings::resize_shorter : other;
    width = image.height <= image.width ? other : settings::resize_shorter;
  }
  const Pixels fitted = height > 0 ? resized(image, height, width, settings::interpolation) : image;
  const bool crops = settings::crop_height > 0 &&
                     (fitted.height != settings::crop_height || fitted.width != settings::crop_width);
  return crops ? cropped(fitted, settings::crop_height, settings::crop_width) : fitted;
}

void normalise(const Pixels& image, float* out) {
  const std::size_t area = static_cast<std::size_t>(image.height) * image.width;
  const bool interleaved = settings::layout == "NHWC";
  const std::size_t pixel_step = interleaved ? image.channels : 1, channel_step = interleaved ? 1 : area;
  for (int channel = 0; channel < image.channels; ++channel) {
    const float mean = settings::mean[channel], deviation = settings::deviation[channel];
    for (std::size_t at = 0; at < area; ++at) {
      const float pixel = image.values[at * image.channels + channel];
      out[at * pixel_step + channel * channel_step] =
          settings::dtype == "uint8" ? pixel : (pixel / settings::scale - mean) / deviation;
    }
  }
}
