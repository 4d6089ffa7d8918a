/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One direction's bytes on their way between two sockets: one writer, one
 * reader, no lock between them.
 *
 *   writer   the sending socket's owner (its lock_sock)
 *   reader   the receiving socket's owner, or its slock while nobody owns it
 *
 * The reader may seal the ring: from that instant no byte can enter, even
 * from a writer that is in the middle of copying. So the reader, under its own
 * lock alone, can empty the ring and know that it stays empty.
 */
#ifndef SHUNT_RING_H
#define SHUNT_RING_H

#include <linux/atomic.h>
#include <linux/cache.h>
#include <linux/types.h>

struct iov_iter;
struct sk_buff;

#define SHUNT_RING_SIZE 65536u

struct shunt_ring {
	u8 *bytes;
	int seals; /* reader's lock: how many calls keep it sealed */

	/* Count of bytes ever read; moved by the reader. */
	u32 tail ____cacheline_aligned_in_smp;

	/* Count of bytes ever written, times two, plus the seal in bit 0. */
	atomic64_t head ____cacheline_aligned_in_smp;
};

int shunt_ring_init(struct shunt_ring *ring); /* sealed once; -ENOMEM */
void shunt_ring_free(struct shunt_ring *ring);

static inline u32 shunt_ring_head(const struct shunt_ring *ring)
{
	return (u32)((u64)atomic64_read_acquire(&ring->head) >> 1);
}

static inline bool shunt_ring_sealed(const struct shunt_ring *ring)
{
	return atomic64_read(&ring->head) & 1;
}

/*
 * Bytes waiting. Exact for the reader as of now (more may come unless sealed)
 * and for the writer (fewer may be left by now); a hint for anybody else.
 */
static inline u32 shunt_ring_used(const struct shunt_ring *ring)
{
	u32 tail = smp_load_acquire(&ring->tail);

	return shunt_ring_head(ring) - tail;
}

/* Reader. Seals nest. */
void shunt_ring_seal(struct shunt_ring *ring);
void shunt_ring_unseal(struct shunt_ring *ring);

/*
 * Writer: copies n bytes (which must fit) without showing them yet. False: the
 * iterator faulted and stands where it stood.
 */
bool shunt_ring_stage(struct shunt_ring *ring, struct iov_iter *from, u32 n);

/*
 * Writer: shows the n bytes staged last. False: the ring has been sealed and
 * they do not exist. A full barrier if true: what the writer reads afterwards
 * is not older than its bytes.
 */
bool shunt_ring_publish(struct shunt_ring *ring, u32 n);

/* Reader: copies the oldest n bytes (which must be there); they stay. */
bool shunt_ring_peek_iter(const struct shunt_ring *ring, struct iov_iter *to, u32 n);
void shunt_ring_peek_skb(const struct shunt_ring *ring, struct sk_buff *to, u32 n);

/* Reader: drops the oldest n bytes, giving their room to the writer. */
void shunt_ring_consume(struct shunt_ring *ring, u32 n);

#endif
