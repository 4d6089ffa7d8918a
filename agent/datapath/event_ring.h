// SPDX-License-Identifier: Apache-2.0
//
// The ring buffer of shunt_event records that bpf/emit.h fills. Not thread-safe.
#ifndef SHUNT_AGENT_DATAPATH_EVENT_RING_H_
#define SHUNT_AGENT_DATAPATH_EVENT_RING_H_

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kmod/uapi/shunt.h"

struct ring_buffer;  // libbpf

namespace shunt {

class EventRing {
 public:
  using Receive = std::function<void(const shunt_event&)>;

  // `map_fd` is the map `events`; used until the end of this object's life.
  static absl::StatusOr<std::unique_ptr<EventRing>> Open(int map_fd);

  // Calls `receive` for what came since the last call. Never blocks.
  absl::Status Drain(const Receive& receive);
  // Readable when there is something urgent, or much.
  int fd() const;

 private:
  struct Deleter {
    void operator()(struct ::ring_buffer* ring) const;
  };

  EventRing() = default;

  std::unique_ptr<struct ::ring_buffer, Deleter> ring_;
  const Receive* receive_ = nullptr;  // during Drain()
};

}  // namespace shunt

#endif  // SHUNT_AGENT_DATAPATH_EVENT_RING_H_
