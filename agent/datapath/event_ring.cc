// SPDX-License-Identifier: Apache-2.0
#include "agent/datapath/event_ring.h"

#include <bpf/libbpf.h>

#include <cerrno>

#include "agent/base/status.h"

namespace shunt {

void EventRing::Deleter::operator()(struct ::ring_buffer* ring) const { ring_buffer__free(ring); }

absl::StatusOr<std::unique_ptr<EventRing>> EventRing::Open(int map_fd) {
  const auto pass_on = [](void* self, void* data, size_t size) {
    const auto* events = static_cast<EventRing*>(self);
    if (size >= sizeof(shunt_event) && events->receive_ != nullptr) {
      (*events->receive_)(*static_cast<const shunt_event*>(data));
    }
    return 0;
  };
  std::unique_ptr<EventRing> events(new EventRing);
  events->ring_.reset(ring_buffer__new(map_fd, pass_on, events.get(), nullptr));
  if (events->ring_ == nullptr) {
    return ErrnoStatus(errno, "opening ring buffer of events");
  }
  return events;
}

absl::Status EventRing::Drain(const Receive& receive) {
  receive_ = &receive;
  const int got = ring_buffer__consume(ring_.get());
  receive_ = nullptr;
  return got < 0 ? ErrnoStatus(got, "reading ring buffer of events") : absl::OkStatus();
}

int EventRing::fd() const { return ring_buffer__epoll_fd(ring_.get()); }

}  // namespace shunt
