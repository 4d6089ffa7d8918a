// SPDX-License-Identifier: Apache-2.0
#include "agent/datapath/leaver.h"

#include <algorithm>
#include <tuple>

namespace shunt {

bool Leaver::ByPair::operator()(const shunt_end_key& a, const shunt_end_key& b) const {
  return std::tie(a.netns_cookie, a.client_next, a.server_next) <
         std::tie(b.netns_cookie, b.client_next, b.server_next);
}

void Leaver::Add(const shunt_end_key& key) { leaving_.try_emplace(key); }

std::optional<Leaver::Microseconds> Leaver::Step(Clock::time_point now) {
  bool closed_some = false;
  for (auto it = leaving_.begin(); it != leaving_.end();) {
    if (it->second.gates_closed) {
      ++it;
      continue;
    }
    it->second.gates_closed = true;
    it->second.due = now;
    if (pairs_->RunLeavePair(it->first, /*grace_passed=*/false) == 0) {
      it = leaving_.erase(it);  // both ends are closed or have left
      continue;
    }
    closed_some = true;
    ++it;
  }
  if (closed_some) {
    pairs_->InterruptCpus();
  }

  std::optional<Clock::time_point> next;
  for (auto it = leaving_.begin(); it != leaving_.end();) {
    Pair& pair = it->second;
    if (pair.due <= now) {
      const bool grace_passed = pair.grace != 0 && pairs_->GracePassed(pair.grace);
      if (pairs_->RunLeavePair(it->first, grace_passed) == 0) {
        it = leaving_.erase(it);
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
  if (!next.has_value()) {
    return std::nullopt;
  }
  return std::chrono::duration_cast<Microseconds>(*next - now);
}

}  // namespace shunt
