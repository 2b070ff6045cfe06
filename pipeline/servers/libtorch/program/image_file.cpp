#include "image_file.hpp"

#include <fstream>
#include <iterator>
#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>

#include "image_header.hpp"
#include "settings.hpp"

namespace {

constexpr int kMostScans = 100;  // of a JPEG, each a pass over all its pixels; a progressive one usually has about ten

void check(const ImageHeader& header, std::size_t size) {
  bool accepted = false;
  std::string names;
  for (const auto name : settings::formats) {
    accepted = accepted || header.format == name;
    names += (names.empty() ? "" : ", ") + std::string(name);
  }
  if (!accepted) throw RefusedImage(std::to_string(size) + " bytes that are no image in " + names);
  const std::string dimensions = std::to_string(header.width) + " x " + std::to_string(header.height) + " pixels";
  if (header.width == 0 || header.height == 0) throw RefusedImage("damaged: " + dimensions);
  if (header.width * header.height > settings::max_pixels)
    throw RefusedImage(dimensions + "; at most " + std::to_string(settings::max_pixels) + " are accepted");
  if (header.scans > kMostScans)
    throw RefusedImage("a JPEG of more than " + std::to_string(kMostScans) + " scans");
  if (!header.ended) throw RefusedImage("truncated: the JPEG has no end marker");
}

cv::Mat opened(const std::vector<std::uint8_t>& data) {
  cv::Mat image;
  try {
    // Grey stays grey and 16 bits stay 16: what becomes of them is decided below, as Pillow does. The orientation, too,
    // is read by image_header.cpp, by the same rule for all formats.
    image = cv::imdecode(data, cv::IMREAD_ANYDEPTH | cv::IMREAD_ANYCOLOR | cv::IMREAD_IGNORE_ORIENTATION);
  } catch (const cv::Exception& error) {
    throw RefusedImage("damaged: " + std::string(error.err));
  }
  if (image.empty()) throw RefusedImage("damaged or truncated");
  if (image.depth() != CV_8U && image.depth() != CV_16U) throw RefusedImage("pixels of neither 8 nor 16 bits");
  return image;
}

// ITU-R BT.601 luma in fixed point: Pillow's mode L.
std::uint8_t luma(int red, int green, int blue) {
  return static_cast<std::uint8_t>((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16);
}

// Of 16 bits Pillow keeps the high byte.
template <typename Value>
std::uint8_t narrowed(Value value) {
  return static_cast<std::uint8_t>(sizeof(Value) == 1 ? value : value >> 8);
}

// OpenCV's grey, or blue, green, red, in the model's colours.
template <typename Value, bool kGrey>
void convert(const cv::Mat& image, std::uint8_t* out) {
  for (int row = 0; row < image.rows; ++row) {
    const Value* in = image.ptr<Value>(row);
    for (int column = 0; column < image.cols; ++column, in += kGrey ? 1 : 3) {
      const std::uint8_t blue = narrowed(in[0]);
      const std::uint8_t green = kGrey ? blue : narrowed(in[1]);
      const std::uint8_t red = kGrey ? blue : narrowed(in[2]);
      if (settings::channels == 1) {
        *out++ = luma(red, green, blue);
      } else {
        *out++ = red;
        *out++ = green;
        *out++ = blue;
      }
    }
  }
}

Pixels converted(const cv::Mat& image) {
  Pixels pixels{image.rows, image.cols, settings::channels, {}};
  pixels.values.resize(image.total() * settings::channels);
  std::uint8_t* out = pixels.values.data();
  const bool grey = image.channels() == 1;
  if (image.depth() == CV_8U)
    grey ? convert<std::uint8_t, true>(image, out) : convert<std::uint8_t, false>(image, out);
  else
    grey ? convert<std::uint16_t, true>(image, out) : convert<std::uint16_t, false>(image, out);
  return pixels;
}

// Upright, by EXIF's orientation.
Pixels turned(const Pixels& image, int orientation) {
  const bool swaps = orientation >= 5, flips_columns = orientation == 2 || orientation == 3 || orientation >= 7;
  const bool flips_rows = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  Pixels result{swaps ? image.width : image.height, swaps ? image.height : image.width, image.channels, {}};
  result.values.resize(image.values.size());
  std::uint8_t* out = result.values.data();
  for (int y = 0; y < result.height; ++y) {
    for (int x = 0; x < result.width; ++x) {
      const int row = flips_rows ? image.height - 1 - (swaps ? x : y) : (swaps ? x : y);
      const int column = flips_columns ? image.width - 1 - (swaps ? y : x) : (swaps ? y : x);
      const std::size_t at = (static_cast<std::size_t>(row) * image.width + column) * image.channels;
      for (int channel = 0; channel < image.channels; ++channel) *out++ = image.values[at + channel];
    }
  }
  return result;
}

}  // namespace

std::vector<std::uint8_t> read_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::vector<std::uint8_t> data((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  if (!stream.is_open() || stream.bad()) throw RefusedImage("cannot be read");
  return data;
}

Pixels decoded(const std::vector<std::uint8_t>& data) {
  if (data.empty()) throw RefusedImage("no bytes; expected an image file");
  const ImageHeader header = read_header(data);
  check(header, data.size());
  Pixels pixels = converted(opened(data));
  return header.orientation == 1 ? pixels : turned(pixels, header.orientation);
}
