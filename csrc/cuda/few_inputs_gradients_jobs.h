// How few_inputs_gradients.cu divides its work between warps: a job is what one of them sums up.
#pragma once
#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "few_inputs_gradients_products.h"

namespace pconv {
namespace {

constexpr int kTileRows = 8, kPixels = kTileRows * kColumns;
constexpr int kJobs = kWarps, kMaxGroups = 8, kBuffers = 2;

struct Job {
  int buffer, row, m, slot;  // copy of the gradient, row of the window, element of the row of taps
};
struct Group {
  int kernels[kBuffers];  // whose ratios scale the copies; the second may be -1
};

// Blocks that take the same kind of pixels.
struct Section {
  int slots = 0;  // of its partial sums
  std::vector<Group> groups;
  std::vector<Job> jobs;  // kJobs to a group; those that are left over have slot -1
};

// Deals the rows of the kernels `first` to `last` out to groups, kJobs jobs and kBuffers kernels at most to
// each.
Section deal(const Problem& p, int first, int last, int cp) {
  struct Dealt {
    std::set<int> kernels;
    std::vector<std::pair<int, Job>> jobs;
  };
  std::vector<Dealt> blocks;
  Section section;
  for (int k = first; k < last; ++k) {
    const Pass& window = p.phases[k];
    std::vector<Job> jobs;
    for (int y = 0; y < window.kh; ++y)
      for (int m = 0; m < cp; m += kHigh) jobs.push_back({0, window.oy + y, m, section.slots + y});
    for (size_t at = 0; at < jobs.size(); at += kJobs) {
      const size_t some = std::min(jobs.size() - at, size_t(kJobs));
      if (blocks.empty() || blocks.back().jobs.size() + some > kJobs ||
          blocks.back().kernels.size() == kBuffers)
        blocks.emplace_back();
      blocks.back().kernels.insert(k);
      for (size_t i = at; i < at + some; ++i) blocks.back().jobs.emplace_back(k, jobs[i]);
    }
    section.slots += window.kh;
  }
  for (const Dealt& block : blocks) {
    const int smaller = *block.kernels.begin(), larger = *block.kernels.rbegin();
    section.groups.push_back({{smaller, larger > smaller ? larger : -1}});
    for (const auto& dealt : block.jobs) {
      section.jobs.push_back(dealt.second);
      section.jobs.back().buffer = dealt.first != smaller;
    }
    section.jobs.resize(section.groups.size() * kJobs, Job{0, 0, 0, -1});
  }
  return section;
}

}  // namespace
}  // namespace pconv
