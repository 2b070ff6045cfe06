#include "preprocessing.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

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

std::string dimensions(std::int64_t height, std::int64_t width) {
  return std::to_string(width) + " x " + std::to_string(height);
}

}  // namespace

Pixels sized(const Pixels& image) {
  std::int64_t height = settings::resize_height, width = settings::resize_width;
  if (settings::resize_shorter > 0) {
    const int shorter = std::min(image.height, image.width), longer = std::max(image.height, image.width);
    const double scaled = static_cast<double>(settings::resize_shorter) * longer / shorter;
    const std::int64_t other = std::max<std::int64_t>(1, static_cast<std::int64_t>(scaled));
    height = image.height <= image.width ? settings::resize_shorter : other;
    width = image.height <= image.width ? other : settings::resize_shorter;
    if (static_cast<std::uint64_t>(height * width) > settings::max_pixels)
      throw RefusedImage(dimensions(image.height, image.width) + " pixels would be resized to " +
                         dimensions(height, width) + "; at most " + std::to_string(settings::max_pixels) +
                         " are accepted");
  }
  const Pixels fitted = height > 0 ? resized(image, static_cast<int>(height), static_cast<int>(width),
                                             settings::interpolation)
                                   : image;
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
