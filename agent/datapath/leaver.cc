// SPDX-License-Identifier: Apache-2.0
#include "agent/datapath/leaver.h"

#include <algorithm>
#include <tuple>

namespace shunt {

bool Leaver::ByPair::operator()(const shunt_end_key& a, const shunt_end_key& b) const {
  return std::tie(a.netns_cookie, a.client_next, a.server_next) <
         std::tie(b.netns_cookie, b.client_next, b.server_next);
}

void Leaver::Add(const shunt_end_key& key) { gates_closed_ |= leaving_.try_emplace(key).second; }

std::optional<Leaver::Microseconds> Leaver::Step(Clock::time_point now) {
  std::optional<Clock::time_point> next;
  do {
    if (gates_closed_) {
      pairs_->InterruptCpus();
      gates_closed_ = false;
    }
    next = LookAtDuePairs(now);
  } while (gates_closed_);
  if (!next.has_value()) {
    return std::nullopt;
  }
  return std::chrono::duration_cast<Microseconds>(*next - now);
}

std::optional<Leaver::Clock::time_point> Leaver::LookAtDuePairs(Clock::time_point now) {
  std::optional<Clock::time_point> next;
  for (auto it = leaving_.begin(); it != leaving_.end();) {
    Pair& pair = it->second;
    if (pair.due <= now) {
      const bool grace_passed = pair.grace != 0 && pairs_->GracePassed(pair.grace);
      const LeavingPairs::Run run = pairs_->RunLeavePair(it->first, grace_passed);
      if (run.members == 0) {
        it = leaving_.erase(it);
        continue;
      }
      if (run.gate_closed_now) {
        gates_closed_ = true;
        pair = Pair();  // due, and to be looked at from the beginning
        ++it;
        continue;
      }
      if (++pair.looks == kFirstLooksCount) {
        // Without a grace period an end whose peer is gone cannot be judged.
        pair.grace = pairs_->AskGrace();
      } else if (pair.looks > kFirstLooksCount) {
        pair.pause = std::min(pair.pause * 3 / 2, kRarestLook);
      }
      pair.due = now + pair.pause;
    }
    next = next.has_value() ? std::min(*next, pair.due) : pair.due;
    ++it;
  }
  return next;
}

}  // namespace shunt
