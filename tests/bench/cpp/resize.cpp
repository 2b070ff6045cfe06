// cv::resize as most C++ programs use it: without antialias. Arguments: FILE OUT HEIGHT WIDTH.
#include <cstdlib>
#include <fstream>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

int main(int, char** words) {
  const cv::Mat image = cv::imread(words[1], cv::IMREAD_COLOR);
  cv::Mat fitted;
  cv::resize(image, fitted, cv::Size(std::atoi(words[4]), std::atoi(words[3])), 0, 0, cv::INTER_LINEAR);
  cv::cvtColor(fitted, fitted, cv::COLOR_BGR2RGB);
  std::ofstream(words[2], std::ios::binary).write(reinterpret_cast<const char*>(fitted.data), fitted.total() * 3);
}
