// SPDX-License-Identifier: Apache-2.0
#include "agent/observe/pairs.h"

#include <sys/socket.h>

#include <algorithm>
#include <map>
#include <tuple>

namespace shunt {
namespace {

using ConnectionKey = std::tuple<uint64_t, uint32_t, uint32_t>;

ConnectionKey KeyOf(const shunt_end_key& key) {
  return {key.netns_cookie, key.client_next, key.server_next};
}

std::string Direction(uint32_t client_uid, uint32_t server_uid, std::optional<uint32_t> proxy_uid) {
  const bool from_proxy = proxy_uid.has_value() && client_uid == *proxy_uid;
  const bool to_proxy = proxy_uid.has_value() && server_uid == *proxy_uid;
  if (from_proxy == to_proxy) {
    return "";
  }
  return from_proxy ? "proxy_to_app" : "app_to_proxy";
}

PairView Join(const shunt_end_record& client, const shunt_end_record& server, std::string pod_uid,
              std::optional<uint32_t> proxy_uid, uint64_t now_ns) {
  const uint64_t paired_ns = std::max(client.end.joined_ns, server.end.joined_ns);
  PairView pair;
  pair.pod_uid = std::move(pod_uid);
  pair.client_port = client.end.local_port;
  pair.server_port = server.end.local_port;
  pair.dialed_port = client.end.remote_port;
  // A v4-mapped socket is AF_INET6; its peer may well be AF_INET.
  pair.family = client.end.family == AF_INET || server.end.family == AF_INET ? "ipv4" : "ipv6";
  pair.direction = Direction(client.end.uid, server.end.uid, proxy_uid);
  pair.client_to_server_bytes = client.redirected_bytes;
  pair.server_to_client_bytes = server.redirected_bytes;
  pair.unread_bytes = uint64_t{client.unread_bytes} + server.unread_bytes;
  pair.age_seconds = now_ns > paired_ns ? (now_ns - paired_ns) / 1e9 : 0;
  pair.state = client.end.gate_closed || server.end.gate_closed ? "leaving" : "accelerated";
  return pair;
}

}  // namespace

std::vector<PairView> JoinEnds(
    const std::vector<shunt_end_record>& ends, const std::function<std::string(uint32_t)>& uid_of,
    const std::function<std::optional<uint32_t>(const std::string&)>& proxy_uid_of,
    uint64_t now_ns) {
  struct Place {
    const shunt_end_record* client = nullptr;
    const shunt_end_record* server = nullptr;
  };
  std::map<ConnectionKey, Place> places;
  std::vector<const Place*> in_order;  // std::map keeps its nodes where they are
  for (const shunt_end_record& record : ends) {
    Place& place = places[KeyOf(record.key)];
    if (record.key.role == SHUNT_SERVER) {
      place.server = &record;
      continue;
    }
    if (place.client == nullptr) {
      in_order.push_back(&place);
    }
    place.client = &record;
  }

  std::vector<PairView> pairs;
  for (const Place* place : in_order) {
    if (place->server == nullptr) {
      continue;
    }
    // Both ends carry the id of the pod that announced the server.
    std::string pod_uid = uid_of(place->server->end.pod);
    const std::optional<uint32_t> proxy_uid = proxy_uid_of(pod_uid);
    pairs.push_back(Join(*place->client, *place->server, std::move(pod_uid), proxy_uid, now_ns));
  }
  return pairs;
}

}  // namespace shunt
