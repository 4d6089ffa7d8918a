// SPDX-License-Identifier: GPL-2.0-only
#include <linux/mm.h>
#include <linux/skbuff.h>
#include <linux/uio.h>

#include "debug.h"
#include "ring.h"

#define SEAL 1

int shunt_ring_init(struct shunt_ring *ring)
{
	ring->bytes = kvmalloc(SHUNT_RING_SIZE, GFP_KERNEL);
	ring->tail = 0;
	ring->seals = 1;
	atomic64_set(&ring->head, SEAL);
	return ring->bytes ? 0 : -ENOMEM;
}

void shunt_ring_free(struct shunt_ring *ring)
{
	kvfree(ring->bytes);
}

void shunt_ring_seal(struct shunt_ring *ring)
{
	if (!ring->seals++)
		atomic64_fetch_or(SEAL, &ring->head);
}

void shunt_ring_unseal(struct shunt_ring *ring)
{
	SHUNT_ASSERT(ring->seals > 0);
	if (!--ring->seals)
		atomic64_fetch_andnot(SEAL, &ring->head);
}

bool shunt_ring_stage(struct shunt_ring *ring, struct iov_iter *from, u32 n)
{
	u32 at = shunt_ring_head(ring) & (SHUNT_RING_SIZE - 1);
	u32 first = min(n, SHUNT_RING_SIZE - at);
	size_t copied;

	SHUNT_ASSERT(n <= SHUNT_RING_SIZE - shunt_ring_used(ring));
	copied = copy_from_iter(ring->bytes + at, first, from);
	if (copied == first && first < n)
		copied += copy_from_iter(ring->bytes, n - first, from);
	if (copied == n)
		return true;
	iov_iter_revert(from, copied);
	return false;
}

bool shunt_ring_publish(struct shunt_ring *ring, u32 n)
{
	s64 head = atomic64_read(&ring->head);

	/* Only the seal can change under the writer, so one retry would do; but
	 * sealed is sealed: the reader has started to look.
	 */
	if (head & SEAL)
		return false;
	return atomic64_cmpxchg(&ring->head, head, head + 2 * (s64)n) == head;
}

bool shunt_ring_peek_iter(const struct shunt_ring *ring, struct iov_iter *to, u32 n)
{
	u32 at = ring->tail & (SHUNT_RING_SIZE - 1);
	u32 first = min(n, SHUNT_RING_SIZE - at);
	size_t copied = copy_to_iter(ring->bytes + at, first, to);

	if (copied == first && first < n)
		copied += copy_to_iter(ring->bytes, n - first, to);
	if (copied == n)
		return true;
	iov_iter_revert(to, copied);
	return false;
}

void shunt_ring_peek_skb(const struct shunt_ring *ring, struct sk_buff *to, u32 n)
{
	u32 at = ring->tail & (SHUNT_RING_SIZE - 1);
	u32 first = min(n, SHUNT_RING_SIZE - at);

	skb_store_bits(to, 0, ring->bytes + at, first);
	if (first < n)
		skb_store_bits(to, first, ring->bytes, n - first);
}

void shunt_ring_consume(struct shunt_ring *ring, u32 n)
{
	SHUNT_ASSERT(n <= shunt_ring_used(ring));
	smp_store_release(&ring->tail, ring->tail + n);
}
