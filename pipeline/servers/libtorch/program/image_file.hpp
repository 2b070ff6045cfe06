// Image files as upright pixels of 8 bits per channel, as the build's own code reads them (Pillow).
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

// Interleaved [height, width, channels]; 1 channel for grey, 3 for red, green, blue.
struct Pixels {
  int height = 0;
  int width = 0;
  int channels = 0;
  std::vector<std::uint8_t> values;
};

// The file is no image of an accepted format, is damaged, or too large to be safe.
struct RefusedImage : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The bytes of a file. Throws RefusedImage where it cannot be read.
std::vector<std::uint8_t> read_file(const std::string& path);

// An image file, turned upright by its EXIF orientation, in the model's colours. Throws RefusedImage.
Pixels decoded(const std::vector<std::uint8_t>& data);
