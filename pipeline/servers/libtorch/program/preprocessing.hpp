// From pixels to the model's input, by settings.hpp: the steps of the build's preprocessing.py, bit for bit.
#pragma once

#include "image_file.hpp"

// Resized, then cropped from the centre, as torchvision does on Pillow images. Throws RefusedImage for a narrow image, of
// which resizing its shorter side would make more than settings::max_pixels.
Pixels sized(const Pixels& image);

// Scaled and normalised in float32, in the input's layout; `out` has room for all values of `image`.
void normalise(const Pixels& image, float* out);
