// SPDX-License-Identifier: Apache-2.0
// An explicit-state model checker: breadth first over every reachable state,
// so that the trace to a violation is a shortest one.
#ifndef SHUNT_TESTS_UNIT_STATE_EXPLORER_H_
#define SHUNT_TESTS_UNIT_STATE_EXPLORER_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace shunt {

struct Exploration {
  size_t states = 0;
  size_t steps = 0;       // edges of the state graph
  std::string violation;  // empty: every property holds in every reachable state
  std::string trace;      // the steps that lead there, one a line
};

// Not thread-safe; one use. `Model` has
//   State, comparable by ==, with `uint64_t Hash() const`; Step, one byte wide;
//   State Initial();
//   ForEachSuccessor(const State&, sink), which calls
//     sink(Step, const State& next, const char* violation_or_null);
//   bool IsGoal(const State&): every reachable state must be able to get to one;
//   std::string Describe(const State& from, Step).
template <typename Model>
class StateExplorer {
 public:
  explicit StateExplorer(Model* model) : model_(model), slots_(1 << 16, kFree) {}

  // Stops at the first violation.
  Exploration Run() {
    Add(model_->Initial(), 0, {});
    for (uint32_t at = 0; at < states_.size(); ++at) {
      first_edge_.push_back(edges_.size());
      const State from = states_[at];
      model_->ForEachSuccessor(from, [&](Step step, const State& next, const char* violation) {
        if (!result_.violation.empty()) return;
        if (violation != nullptr) {
          result_.violation = violation;
          result_.trace = TraceTo(at) + model_->Describe(from, step) + "\n";
          return;
        }
        edges_.push_back(Add(next, at, step));
      });
      if (!result_.violation.empty()) break;
    }
    result_.states = states_.size();
    result_.steps = edges_.size();
    if (result_.violation.empty()) FindStateWithoutWayToGoal();
    return std::move(result_);
  }

 private:
  using State = typename Model::State;
  using Step = typename Model::Step;
  static constexpr uint32_t kFree = UINT32_MAX;

  uint32_t Add(const State& state, uint32_t parent, Step step) {
    if (states_.size() * 2 >= slots_.size()) Grow();
    size_t slot = state.Hash() & (slots_.size() - 1);
    for (; slots_[slot] != kFree; slot = (slot + 1) & (slots_.size() - 1)) {
      if (states_[slots_[slot]] == state) return slots_[slot];
    }
    slots_[slot] = static_cast<uint32_t>(states_.size());
    states_.push_back(state);
    parents_.push_back(parent);
    steps_.push_back(step);
    return slots_[slot];
  }

  void Grow() {
    slots_.assign(slots_.size() * 2, kFree);
    for (uint32_t i = 0; i < states_.size(); ++i) {
      size_t slot = states_[i].Hash() & (slots_.size() - 1);
      while (slots_[slot] != kFree) slot = (slot + 1) & (slots_.size() - 1);
      slots_[slot] = i;
    }
  }

  std::string TraceTo(uint32_t state) const {
    std::vector<uint32_t> path;
    for (; state != 0; state = parents_[state]) path.push_back(state);
    std::string trace;
    for (auto at = path.rbegin(); at != path.rend(); ++at) {
      trace += model_->Describe(states_[parents_[*at]], steps_[*at]) + "\n";
    }
    return trace;
  }

  // Backwards from the goals over the reversed edges.
  void FindStateWithoutWayToGoal() {
    first_edge_.push_back(edges_.size());
    std::vector<size_t> first_reverse(states_.size() + 1, 0);
    for (uint32_t target : edges_) ++first_reverse[target + 1];
    for (size_t i = 0; i < states_.size(); ++i) first_reverse[i + 1] += first_reverse[i];
    std::vector<uint32_t> reverse(edges_.size());
    std::vector<size_t> fill(first_reverse.begin(), first_reverse.end() - 1);
    for (uint32_t from = 0; from < states_.size(); ++from) {
      for (size_t edge = first_edge_[from]; edge < first_edge_[from + 1]; ++edge) {
        reverse[fill[edges_[edge]]++] = from;
      }
    }

    std::vector<bool> can_reach(states_.size(), false);
    std::vector<uint32_t> pending;
    for (uint32_t i = 0; i < states_.size(); ++i) {
      if (!model_->IsGoal(states_[i])) continue;
      can_reach[i] = true;
      pending.push_back(i);
    }
    while (!pending.empty()) {
      const uint32_t at = pending.back();
      pending.pop_back();
      for (size_t edge = first_reverse[at]; edge < first_reverse[at + 1]; ++edge) {
        if (can_reach[reverse[edge]]) continue;
        can_reach[reverse[edge]] = true;
        pending.push_back(reverse[edge]);
      }
    }
    for (uint32_t i = 0; i < states_.size(); ++i) {
      if (can_reach[i]) continue;
      result_.violation = "stuck: from here nothing leads to a settled state";
      result_.trace = TraceTo(i);
      return;
    }
  }

  Model* const model_;  // not owned

  std::vector<State> states_;
  std::vector<uint32_t> parents_;  // by state: where it was first reached from
  std::vector<Step> steps_;        // by state: and by which step
  std::vector<uint32_t> slots_;    // open addressing over states_
  std::vector<uint32_t> edges_;    // targets; those of state i start at first_edge_[i]
  std::vector<size_t> first_edge_;
  Exploration result_;
};

}  // namespace shunt

#endif  // SHUNT_TESTS_UNIT_STATE_EXPLORER_H_
