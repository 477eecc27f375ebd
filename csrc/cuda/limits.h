// How much of an operator the kernels take: the sizes of their tables, which a launch carries in its (at most
// 4 KB of) arguments.
#pragma once

namespace pconv {

constexpr int kMostBranches = 31;               // windows of different sizes
constexpr int kMostPasses = kMostBranches + 1;  // one over each branch and one over all merged
constexpr int kMostStride = 128;

// What a block has of shared memory on every GPU: sm_86, sm_89 and sm_120 have no more.
constexpr int kSharedBytes = 99 << 10;

}  // namespace pconv
