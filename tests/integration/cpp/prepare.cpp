// Runs a program's image code without its model. Each line of standard input is a job: FILE OUT HEIGHT WIDTH FILTER.
// A height of 0 makes the file into the model's input (float32), another one a resized image (uint8). Files that are
// refused are printed with the reason.
#include <fstream>
#include <iostream>

#include "image_file.hpp"
#include "preprocessing.hpp"
#include "resample.hpp"

int main() {
  std::string file, out, filter;
  int height = 0, width = 0;
  while (std::cin >> file >> out >> height >> width >> filter) {
    std::ofstream stream(out, std::ios::binary);
    try {
      const Pixels image = decoded(read_file(file));
      if (height > 0) {
        const Pixels fitted = resized(image, height, width, filter);
        stream.write(reinterpret_cast<const char*>(fitted.values.data()), fitted.values.size());
      } else {
        const Pixels fitted = sized(image);
        std::vector<float> values(fitted.values.size());
        normalise(fitted, values.data());
        stream.write(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
      }
    } catch (const RefusedImage& refusal) {
      std::cout << file << "\t" << refusal.what() << "\n";
    }
  }
}
