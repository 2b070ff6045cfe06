// What an image file says of itself before it is decoded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct ImageHeader {
  std::string format;  // jpeg, png, webp; empty for anything else
  std::uint64_t width = 0;
  std::uint64_t height = 0;
  int orientation = 1;  // EXIF's, 1 to 8
  int scans = 0;        // of a JPEG
  bool ended = true;    // false for a JPEG without its end marker, which OpenCV would fill up with grey
};

ImageHeader read_header(const std::vector<std::uint8_t>& data);
