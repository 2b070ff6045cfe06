// Resizing as Pillow does it: with antialias, in fixed point, bit for bit.
#pragma once

#include <string_view>

#include "image_file.hpp"

// `filter` is nearest, bilinear, bicubic or lanczos.
Pixels resized(const Pixels& image, int height, int width, std::string_view filter);
