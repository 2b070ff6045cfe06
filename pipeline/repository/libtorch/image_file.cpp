#include "image_file.hpp"

#include <fstream>
#include <iterator>
#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>

#include "image_header.hpp"
#include "settings.hpp"

namespace {

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
  if (!header.ended) throw RefusedImage("truncated: the JPEG has no end marker");
}

cv::Mat opened(const std::vector<std::uint8_t>& data) {
  cv::Mat image;
  try {
    // Grey stays grey and 16 bits stay 16: what becomes of them is decided below, as Pillow does. The orientation is
    // read by image_header.cpp, since OpenCV 4.6 does not see that of WebP.
    image = cv::imdecode(data, cv::IMREAD_ANYDEPTH | cv::IMREAD_ANYCOLOR | cv::IMREAD_IGNORE_ORIENTATION);
  } catch (const cv::Exception& error) {
    throw RefusedImage("damaged: " + std::string(error.err));
  }
  if (image.empty()) throw RefusedImage("damaged or truncated");
  if (image.depth() != CV_8U && image.depth() != CV_16U) throw RefusedImage("pixels of neither 8 nor 16 bits");
  return image;
}

// 16 bits to 8: grey is scaled (65535 / 257 = 255), of colours Pillow keeps the high byte.
std::uint8_t value(const cv::Mat& image, int row, int column, int channel) {
  const int at = column * image.channels() + channel;
  if (image.depth() == CV_8U) return image.ptr<std::uint8_t>(row)[at];
  const int wide = image.ptr<std::uint16_t>(row)[at];
  return static_cast<std::uint8_t>(image.channels() == 1 ? wide / 257 : wide >> 8);
}

// ITU-R BT.601 luma in fixed point: Pillow's mode L.
std::uint8_t luma(int red, int green, int blue) {
  return static_cast<std::uint8_t>((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16);
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
  const cv::Mat image = opened(data);
  const int turn = header.orientation;
  const bool swaps = turn >= 5, flips_rows = turn == 3 || turn == 4 || turn == 6 || turn == 7;
  const bool flips_columns = turn == 2 || turn == 3 || turn == 7 || turn == 8;
  Pixels pixels;
  pixels.height = swaps ? image.cols : image.rows;
  pixels.width = swaps ? image.rows : image.cols;
  pixels.channels = settings::channels;
  pixels.values.resize(static_cast<std::size_t>(pixels.height) * pixels.width * pixels.channels);
  std::uint8_t* out = pixels.values.data();
  for (int y = 0; y < pixels.height; ++y) {
    for (int x = 0; x < pixels.width; ++x) {
      const int from_y = swaps ? x : y, from_x = swaps ? y : x;
      const int row = flips_rows ? image.rows - 1 - from_y : from_y;
      const int column = flips_columns ? image.cols - 1 - from_x : from_x;
      const bool grey = image.channels() == 1;  // else blue, green, red
      const std::uint8_t blue = value(image, row, column, 0);
      const std::uint8_t green = grey ? blue : value(image, row, column, 1);
      const std::uint8_t red = grey ? blue : value(image, row, column, 2);
      if (pixels.channels == 1) {
        *out++ = luma(red, green, blue);
      } else {
        *out++ = red;
        *out++ = green;
        *out++ = blue;
      }
    }
  }
  return pixels;
}
