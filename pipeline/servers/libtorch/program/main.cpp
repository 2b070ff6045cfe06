// Images in, labels out: loads the TorchScript module beside it and runs it on image files, on the CPU.
#include <ATen/Parallel.h>
#include <torch/script.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>

#include "image_file.hpp"
#include "json.hpp"
#include "options.hpp"
#include "postprocessing.hpp"
#include "preprocessing.hpp"
#include "settings.hpp"

namespace {

// The first runs of a TorchScript module are slow: its executor profiles them, then optimises.
constexpr int kWarmUpRuns = 3;
constexpr int kSomeRefused = 1, kWrongUsage = 2, kFails = 3;

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  if (values.empty()) return 0.0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

[[noreturn]] void cannot_write(const std::string& name) {
  throw std::runtime_error("cannot write " + name + ": " + std::strerror(errno));
}

// A file to write, opened before any work is done for it; without a path, none.
std::ofstream output(const std::string& path) {
  std::ofstream stream;
  if (!path.empty()) stream.open(path, std::ios::binary);
  if (!stream) cannot_write(path);
  return stream;
}

// What was printed is buffered: only now is it known whether it could be written.
void finish_printing() {
  if (std::fflush(stdout) != 0 || std::ferror(stdout)) throw std::runtime_error("cannot write all of standard output");
}

// All in milliseconds: per image but for `forward`, which is per batch.
struct Timings {
  double load = 0.0;
  double first_forward = 0.0;
  std::vector<double> decode, preprocess, forward;
};

at::ScalarType input_type() {
  if (settings::dtype == "uint8") return at::kByte;
  if (settings::dtype == "float16") return at::kHalf;
  return settings::dtype == "float64" ? at::kDouble : at::kFloat;
}

class Program {
 public:
  explicit Program(const Options& options)
      : options_(options), json_(output(options.json)), dump_(output(options.dump)) {
    const auto start = Clock::now();
    module_ = torch::jit::load(options.model, at::kCPU);
    module_.eval();
    timings_.load = milliseconds_since(start);
  }

  // Decodes every file, runs the model on batches of equal size, prints answers; returns whether all were answered.
  bool run() {
    for (const std::string& file : options_.files) {
      try {
        take(file);
      } catch (const RefusedImage& refusal) {
        refuse(file, refusal.what());
      } catch (const std::ios_base::failure&) {  // a folder, a bad disk
        refuse(file, "cannot be read");
      }
    }
    flush();
    if (dump_.is_open() && !dump_.flush()) cannot_write(options_.dump);
    return refused_.empty();
  }

  void print_timings() const {
    std::printf("loaded in %.1f ms; per image: decode %.3f ms, preprocess %.3f ms (medians of %zu)\n", timings_.load,
                median(timings_.decode), median(timings_.preprocess), timings_.decode.size());
    std::printf("forward: first run %.2f ms, then median %.3f ms (%zu runs of up to %d images, %d threads)\n",
                timings_.first_forward, median(timings_.forward), timings_.forward.size(), options_.batch,
                at::get_num_threads());
  }

  void write_json() {
    if (!json_.is_open()) return;
    const auto per_image = [](const std::vector<double>& values) { return json::number(median(values), 6); };
    json_ << "{\"threads\":" << at::get_num_threads() << ",\"batch\":" << options_.batch
          << ",\"images\":" << json::list(answers_) << ",\"refused\":" << json::list(refused_)
          << ",\"timings_ms\":{\"load\":" << json::number(timings_.load, 6) << ",\"decode\":" << per_image(timings_.decode)
          << ",\"preprocess\":" << per_image(timings_.preprocess)
          << ",\"forward_first\":" << json::number(timings_.first_forward, 6)
          << ",\"forward\":" << json::number(median(timings_.forward), 6) << "}}\n";
    if (!json_.flush()) cannot_write(options_.json);
  }

 private:
  struct Waiting {
    std::string file;
    Pixels pixels;
    double sized_ms;
  };

  void refuse(const std::string& file, const std::string& reason) {
    std::cerr << file << ": refused: " << reason << std::endl;
    refused_.push_back("{\"file\":" + json::text(file) + ",\"reason\":" + json::text(reason) + "}");
  }

  void take(const std::string& file) {
    auto start = Clock::now();
    const Pixels image = decoded(read_file(file));
    timings_.decode.push_back(milliseconds_since(start));
    start = Clock::now();
    Pixels fitted = sized(image);
    const double sized_ms = milliseconds_since(start);
    if (!waiting_.empty()) {
      const Pixels& other = waiting_.front().pixels;  // images of one batch have one size
      if (other.height != fitted.height || other.width != fitted.width) flush();
    }
    waiting_.push_back({file, std::move(fitted), sized_ms});
    if (waiting_.size() == static_cast<std::size_t>(options_.batch)) flush();
  }

  // Every image is normalised straight into its place in the batch.
  at::Tensor input() {
    const Pixels& first = waiting_.front().pixels;
    const auto count = static_cast<std::int64_t>(waiting_.size());
    at::Tensor batch = at::empty({count, static_cast<std::int64_t>(first.values.size())}, at::kFloat);
    for (std::size_t at = 0; at < waiting_.size(); ++at) {
      const auto start = Clock::now();
      normalise(waiting_[at].pixels, batch.data_ptr<float>() + at * first.values.size());
      timings_.preprocess.push_back(waiting_[at].sized_ms + milliseconds_since(start));
    }
    std::vector<std::int64_t> shape{first.channels, first.height, first.width};
    if (settings::layout == "NHWC") shape = {first.height, first.width, first.channels};
    if (settings::layout == "flat") shape = {static_cast<std::int64_t>(first.values.size())};
    if (settings::leading_dimension) shape.insert(shape.begin(), count);
    return batch.view(shape).to(input_type());
  }

  at::Tensor forward(const at::Tensor& input) {
    const auto result = module_.forward({input});
    const auto scores = result.isTuple() ? result.toTuple()->elements()[settings::output_index] : result;
    return scores.toTensor();
  }

  void flush() {
    if (waiting_.empty()) return;
    const at::Tensor batch = input();
    const auto size = static_cast<std::streamsize>(batch.nbytes());
    if (dump_.is_open() && !dump_.write(static_cast<const char*>(batch.data_ptr()), size)) cannot_write(options_.dump);
    if (timings_.forward.empty()) {
      const auto start = Clock::now();
      forward(batch);
      timings_.first_forward = milliseconds_since(start);
      for (int run = 0; run < kWarmUpRuns; ++run) forward(batch);
    }
    at::Tensor scores;
    for (int run = 0; run < options_.repeat; ++run) {
      const auto start = Clock::now();
      scores = forward(batch);
      timings_.forward.push_back(milliseconds_since(start));
    }
    answer(scores.to(at::kDouble).contiguous().view({static_cast<std::int64_t>(waiting_.size()), -1}));
    waiting_.clear();
  }

  void answer(const at::Tensor& scores) {
    for (std::size_t at = 0; at < waiting_.size(); ++at) {
      const auto* row = scores.data_ptr<double>() + static_cast<std::int64_t>(at) * scores.size(1);
      try {
        answer(waiting_[at].file, std::vector<double>(row, row + scores.size(1)));
      } catch (const UnusableScores& error) {
        refuse(waiting_[at].file, error.what());
      }
    }
  }

  void answer(const std::string& file, const std::vector<double>& scores) {
    const std::vector<Answer> best = ranked(scores);
    std::vector<std::string> labels, written;
    for (const Answer& one : best)
      labels.push_back("{\"label\":" + json::text(one.label) + ",\"probability\":" + json::number(one.probability, 9) + "}");
    for (const double score : scores) written.push_back(json::number(score, 9));
    answers_.push_back("{\"file\":" + json::text(file) + ",\"labels\":" + json::list(labels) +
                       ",\"scores\":" + json::list(written) + "}");
    if (best.empty()) std::printf("%s\t(no label)\n", file.c_str());
    else std::printf("%s\t%s\t%.6f\n", file.c_str(), best[0].label.c_str(), best[0].probability);
  }

  Options options_;
  torch::jit::Module module_;
  Timings timings_;
  std::ofstream json_, dump_;  // not open where not asked for
  std::vector<Waiting> waiting_;
  std::vector<std::string> answers_, refused_;  // JSON
};

int run(const Options& options) {
  if (options.threads > 0) at::set_num_threads(options.threads);
  const c10::InferenceMode no_gradients;
  Program program(options);
  const bool complete = program.run();
  program.print_timings();
  program.write_json();
  finish_printing();
  return complete ? 0 : kSomeRefused;
}

}  // namespace

int main(int count, char** words) {
  try {
    bool asked_for_help = false;
    const Options options = parsed(count, words, asked_for_help);
    if (asked_for_help) {
      std::printf("usage: %s%s", settings::name, kUsage);
      finish_printing();
      return 0;
    }
    return run(options);
  } catch (const WrongUsage& error) {
    std::cerr << settings::name << ": " << error.what() << "\nusage: " << settings::name << kUsage;
    return kWrongUsage;
  } catch (const c10::Error& error) {
    std::cerr << settings::name << ": the model cannot be loaded or run: " << error.what_without_backtrace() << std::endl;
  } catch (const std::exception& error) {
    std::cerr << settings::name << ": " << error.what() << std::endl;
  }
  return kFails;
}
