/*
 * The hot path of emu's kernel in C: the yardstick that tools/bench_hot_path.py holds the compiled Python against.
 *
 * Function by function the same algorithm as emu/iommu, emu/native and emu/hypervisor (service "inline"), on the same
 * records at the same addresses. layout.h is generated from the NumPy dtypes, so the structs cannot drift; that both
 * sides also do the same is checked by comparing all they leave in the segment. What a warm, uncontended loop never
 * reaches (the tree of ranges, a missing table, a taken lock) is not written down: it calls off_the_path(), and the
 * benchmark refuses to report a run in which that happened.
 */
#define _GNU_SOURCE
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "layout.h"

#define DEREF(type, address) ((struct type *)(address))
#define ELEMENT(type, address, index) ((struct type *)(address) + (index))
/* Out of line, as @slow keeps it in Python. */
#define slow __attribute__((noinline))
#define unlikely(condition) __builtin_expect(!!(condition), 0)

static int64_t strayed;

static __attribute__((noinline, cold)) void off_the_path(void)
{
	strayed++;
}

int64_t times_off_the_path(void)
{
	return strayed;
}

/* --- atomics, clocks ---------------------------------------------------------------------------------------------- */

#define read_once(word) __atomic_load_n(&(word), __ATOMIC_RELAXED)
#define write_once(word, value) __atomic_store_n(&(word), value, __ATOMIC_RELAXED)
#define smp_load_acquire(word) __atomic_load_n(&(word), __ATOMIC_ACQUIRE)
#define fetch_add(word, value) __atomic_fetch_add(&(word), value, __ATOMIC_SEQ_CST)
#define xchg(word, value) __atomic_exchange_n(&(word), value, __ATOMIC_SEQ_CST)
#define smp_mb() __atomic_thread_fence(__ATOMIC_SEQ_CST)

static inline int32_t cmpxchg_32(int32_t *word, int32_t old, int32_t new)
{
	__atomic_compare_exchange_n(word, &old, new, false, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE);
	return old;
}

static inline int64_t cmpxchg_64(int64_t *word, int64_t old, int64_t new)
{
	__atomic_compare_exchange_n(word, &old, new, false, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE);
	return old;
}

static inline int64_t max(int64_t a, int64_t b)
{
	return a > b ? a : b;
}

static inline int64_t min(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

static inline int64_t ilog2(int64_t value)
{
	return 63 - __builtin_clzll(value);
}

static inline int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static inline int64_t now_ticks(void)
{
#if TICKS_ARE_CYCLES
	return __builtin_ia32_rdtsc();
#else
	return now_ns();
#endif
}

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

static slow void spend_until(int64_t deadline_ns)
{
	if (unlikely(deadline_ns - now_ns() > 2 * SPIN_NS))
		off_the_path();
	while (now_ns() < deadline_ns)
		cpu_relax();
}

/* --- lock, histogram, timer --------------------------------------------------------------------------------------- */

static inline void spin_lock(struct cpu_t *cpu, struct spinlock_t *lock)
{
	if (unlikely(cmpxchg_32(&lock->val, 0, cpu->owner) != 0))
		off_the_path();
	lock->acquisitions++;
}

static inline void spin_unlock(struct spinlock_t *lock)
{
	if (unlikely(xchg(lock->val, 0) & WAITERS))
		off_the_path();
}

static inline int64_t bucket_of(int64_t value)
{
	int64_t exponent;

	if (value < 1 << SUB_BITS)
		return max(value, 0);
	exponent = ilog2(value) - SUB_BITS;
	return (exponent << SUB_BITS) + (value >> exponent);
}

static inline void record_value(int64_t histogram, int64_t value)
{
	((int64_t *)histogram)[bucket_of(value)]++;
}

static slow void add_timer(struct timer_t *timer)
{
	/* Armed while warming up; nobody fires it. */
	if (cmpxchg_64(&timer->state, TIMER_IDLE, TIMER_ARMING) == TIMER_IDLE)
		off_the_path();
}

/* --- page table --------------------------------------------------------------------------------------------------- */

static inline int64_t calc_rtx(int64_t pfn)
{
	return (pfn >> (ZPCI_PT_BITS + ZPCI_TABLE_BITS)) & (ZPCI_TABLE_ENTRIES - 1);
}

static inline int64_t calc_sx(int64_t pfn)
{
	return (pfn >> ZPCI_PT_BITS) & (ZPCI_TABLE_ENTRIES - 1);
}

static inline int64_t calc_px(int64_t pfn)
{
	return pfn & (ZPCI_PT_ENTRIES - 1);
}

static inline int64_t table_of(int64_t entry_table, int64_t index, int64_t flag_mask)
{
	int64_t entry = smp_load_acquire(((int64_t *)entry_table)[index]);

	return entry & ZPCI_TABLE_INVALID ? 0 : entry & ~flag_mask;
}

static inline int64_t segment_table_of(struct io_pgtable *pgtable, int64_t pfn)
{
	return table_of(pgtable->region_table, calc_rtx(pfn), RTE_FLAG_MASK);
}

static inline int64_t page_table_of(struct io_pgtable *pgtable, int64_t pfn)
{
	int64_t segment_table = segment_table_of(pgtable, pfn);

	return segment_table ? table_of(segment_table, calc_sx(pfn), STE_FLAG_MASK) : 0;
}

static inline bool pte_valid(int64_t pte)
{
	return !(pte & ZPCI_PTE_INVALID);
}

static inline int64_t set_pte(struct io_pgtable *pgtable, int64_t pfn, int64_t pte)
{
	int64_t page_table = page_table_of(pgtable, pfn);

	if (unlikely(page_table == 0)) {
		off_the_path();
		return NO_PTE;
	}
	return xchg(((int64_t *)page_table)[calc_px(pfn)], pte);
}

/* --- hypervisor, served inline ------------------------------------------------------------------------------------ */

static slow int64_t walk_guest_table(struct hypervisor_t *hv, struct function_t *function, int64_t start_pfn,
				     int64_t end_pfn)
{
	struct io_pgtable *pgtable = DEREF(io_pgtable, function->guest_table);
	int64_t inspected = 0, pfn = start_pfn;

	while (pfn < end_pfn) {
		int64_t stop_pfn;

		if (segment_table_of(pgtable, pfn) == 0) {
			pfn = (pfn | (PAGES_PER_SEGMENT_TABLE - 1)) + 1;
			continue;
		}
		stop_pfn = min(end_pfn, (pfn | (ZPCI_PT_ENTRIES - 1)) + 1);
		if (page_table_of(pgtable, pfn)) {
			inspected += stop_pfn - pfn;
			if (unlikely(hv->shadows))
				off_the_path();
		}
		pfn = stop_pfn;
	}
	return inspected << 32;
}

static inline void note_waiting(struct server_t *server, struct request_t *request, int64_t free_at_ns,
				int64_t started_ns)
{
	int64_t wait_ns = max(free_at_ns - request->posted_ns, 0);
	int64_t schedule_ns = max(started_ns - max(free_at_ns, request->posted_ns), 0);

	server->total_wait_ns += wait_ns;
	server->max_wait_ns = max(server->max_wait_ns, wait_ns);
	server->total_schedule_ns += schedule_ns;
	server->max_schedule_ns = max(server->max_schedule_ns, schedule_ns);
	record_value(server->wait_histogram, wait_ns);
	record_value(server->schedule_histogram, schedule_ns);
}

static slow void spend(struct cpu_t *cpu, int64_t deadline_ns)
{
	int64_t *abort = (int64_t *)cpu->abort;

	while (now_ns() < deadline_ns && !read_once(*abort))
		spend_until(min(deadline_ns, now_ns() + STEP_NS));
}

static inline int64_t function_number(struct hypervisor_t *hv, int64_t fh)
{
	int64_t number = fh & ~FH_ENABLED;

	return fh & FH_ENABLED && number < hv->function_count ? number : NO_FUNCTION;
}

static slow void serve_request(struct cpu_t *cpu, struct hypervisor_t *hv, struct request_t *request)
{
	int64_t number = function_number(hv, request->fh);
	struct function_t *function = DEREF(function_t, hv->functions) + number;
	struct server_t *server = DEREF(server_t, cpu->server);
	int64_t started_ns = now_ns();
	int64_t counts = 0, walked, changed, emulated_ns, finished_ns;

	if (unlikely(number == NO_FUNCTION))
		off_the_path();
	note_waiting(server, request, hv->is_inline ? hv->free_at_ns : server->free_at_ns, started_ns);
	if (hv->shadows || hv->walk_ps)
		counts = walk_guest_table(hv, function, request->start_pfn, request->start_pfn + request->pages);
	walked = hv->absent_counts ? request->pages : counts >> 32;
	changed = counts & 0xFFFFFFFF;
	emulated_ns = hv->intercept_ns + (walked * hv->walk_ps + changed * hv->change_ps) / 1000;
	spend(cpu, started_ns + emulated_ns);
	finished_ns = now_ns();
	server->requests++;
	server->global_requests += request->is_global;
	server->walked += walked;
	server->changed += changed;
	server->emulated_ns += emulated_ns;
	server->busy_ns += finished_ns - started_ns;
	server->free_at_ns = finished_ns;
	hv->free_at_ns = finished_ns;
}

static slow int64_t take_turn(struct cpu_t *cpu, struct hypervisor_t *hv)
{
	int64_t ticket = read_once(hv->tail);
	int64_t *place = (int64_t *)hv->ring + (ticket & hv->ring_mask);
	int64_t found = read_once(*place);

	if (unlikely(hv->queue_limit || ((found & SLOT_MASK) && found >> SLOT_BITS >= ticket)))
		off_the_path();
	if (unlikely(cmpxchg_64(place, found, ticket << SLOT_BITS | (cpu->slot + 1)) != found))
		off_the_path();
	cmpxchg_64(&hv->tail, ticket, ticket + 1);
	if (unlikely(smp_load_acquire(hv->head) < ticket))
		off_the_path();
	return ticket;
}

static slow void rpcit(struct cpu_t *cpu, int64_t fh, int64_t start_pfn, int64_t pages, bool is_global)
{
	struct hypervisor_t *hv = DEREF(hypervisor_t, cpu->hypervisor);
	struct request_t *request = DEREF(request_t, cpu->request);
	int64_t ticket;

	request->fh = fh;
	request->start_pfn = start_pfn;
	request->pages = pages;
	request->is_global = is_global;
	request->posted_ns = now_ns();
	if (unlikely(!hv->is_inline))
		off_the_path();
	ticket = take_turn(cpu, hv);
	spin_lock(cpu, &hv->lock);
	cmpxchg_64(&hv->head, ticket, ticket + 1);
	serve_request(cpu, hv, request);
	spin_unlock(&hv->lock);
	cpu->ctrs.requests++;
	cpu->ctrs.request_wait_ns += request->wait_ns;
	cpu->ctrs.request_service_ns += request->service_ns;
	if (is_global)
		record_value(cpu->flush_histogram, now_ns() - request->posted_ns);
}

/* --- s390 driver -------------------------------------------------------------------------------------------------- */

static bool s390_iommu_map_pages(struct cpu_t *cpu, struct s390_domain *domain, int64_t iova_pfn, int64_t phys_pfn,
				 int64_t pages)
{
	for (int64_t i = 0; i < pages; i++) {
		int64_t old = set_pte(&domain->pgtable, iova_pfn + i, (phys_pfn + i) << PAGE_SHIFT);

		if (unlikely(old == NO_PTE))
			return false;
		if (unlikely(pte_valid(old)))
			off_the_path();
	}
	cpu->ctrs.mapped_pages += pages;
	return true;
}

static void s390_iommu_unmap_pages(struct cpu_t *cpu, struct s390_domain *domain, int64_t iova_pfn, int64_t pages)
{
	for (int64_t i = 0; i < pages; i++) {
		int64_t old = set_pte(&domain->pgtable, iova_pfn + i, ZPCI_PTE_INVALID);

		if (unlikely(!pte_valid(old)))
			off_the_path();
	}
	cpu->ctrs.unmapped_pages += pages;
}

static slow void s390_iommu_flush_iotlb_all(struct cpu_t *cpu, struct s390_domain *domain)
{
	cpu->ctrs.global_rpcits++;
	rpcit(cpu, domain->fh, domain->aperture_start_pfn, domain->aperture_pages, true);
}

static inline void s390_iommu_iotlb_sync_map(struct s390_domain *domain)
{
	if (unlikely(domain->tlb_refresh))
		off_the_path();
}

/* --- IOVA allocator ----------------------------------------------------------------------------------------------- */

static inline int64_t order_base_2(int64_t size)
{
	return size > 1 ? ilog2(size - 1) + 1 : 0;
}

static slow int64_t magazine_alloc(struct cpu_t *cpu, struct iova_domain *iovad)
{
	int64_t address;

	spin_lock(cpu, &iovad->magazine_lock);
	address = iovad->free_magazines;
	if (address) {
		iovad->free_magazines = DEREF(iova_magazine, address)->next;
		DEREF(iova_magazine, address)->count = 0;
	}
	spin_unlock(&iovad->magazine_lock);
	return address;
}

static slow void magazine_free(struct cpu_t *cpu, struct iova_domain *iovad, int64_t address)
{
	spin_lock(cpu, &iovad->magazine_lock);
	DEREF(iova_magazine, address)->next = iovad->free_magazines;
	iovad->free_magazines = address;
	spin_unlock(&iovad->magazine_lock);
}

static inline int64_t magazine_pop(int64_t address, int64_t limit_pfn)
{
	struct iova_magazine *magazine = DEREF(iova_magazine, address);
	int64_t i = magazine->count - 1;
	int64_t pfn;

	while (magazine->pfns[i] > limit_pfn) {
		if (i == 0)
			return 0;
		i--;
	}
	pfn = magazine->pfns[i];
	magazine->count--;
	magazine->pfns[i] = magazine->pfns[magazine->count];
	return pfn;
}

static inline void magazine_push(int64_t address, int64_t pfn)
{
	struct iova_magazine *magazine = DEREF(iova_magazine, address);

	magazine->pfns[magazine->count] = pfn;
	magazine->count++;
}

static inline void iova_depot_push(struct iova_rcache *rcache, int64_t address)
{
	DEREF(iova_magazine, address)->next = rcache->depot;
	rcache->depot = address;
	rcache->depot_size++;
}

static inline int64_t iova_depot_pop(struct iova_rcache *rcache)
{
	int64_t address = rcache->depot;

	rcache->depot = DEREF(iova_magazine, address)->next;
	DEREF(iova_magazine, address)->count = IOVA_MAG_SIZE;
	rcache->depot_size--;
	return address;
}

static slow bool swap_in_empty_magazine(struct cpu_t *cpu, struct iova_domain *iovad, struct iova_rcache *rcache,
					struct iova_cpu_rcache *cpu_rcache)
{
	int64_t new_magazine = magazine_alloc(cpu, iovad);

	if (new_magazine == 0)
		return false;
	spin_lock(cpu, &rcache->lock);
	iova_depot_push(rcache, cpu_rcache->loaded);
	spin_unlock(&rcache->lock);
	add_timer(&rcache->work);
	cpu_rcache->loaded = new_magazine;
	return true;
}

static slow bool swap_in_depot_magazine(struct cpu_t *cpu, struct iova_domain *iovad, struct iova_rcache *rcache,
					struct iova_cpu_rcache *cpu_rcache)
{
	int64_t empty = 0;

	spin_lock(cpu, &rcache->lock);
	if (rcache->depot) {
		empty = cpu_rcache->loaded;
		cpu_rcache->loaded = iova_depot_pop(rcache);
	}
	spin_unlock(&rcache->lock);
	if (empty == 0)
		return false;
	magazine_free(cpu, iovad, empty);
	return true;
}

static inline void swap_magazines(struct iova_cpu_rcache *cpu_rcache)
{
	int64_t loaded = cpu_rcache->loaded;

	cpu_rcache->loaded = cpu_rcache->prev;
	cpu_rcache->prev = loaded;
}

static inline bool iova_rcache_insert(struct cpu_t *cpu, struct iova_domain *iovad, int64_t pfn, int64_t size)
{
	int64_t order = order_base_2(size);
	struct iova_rcache *rcache;
	struct iova_cpu_rcache *cpu_rcache;
	bool can_insert = true;

	if (order >= IOVA_RANGE_CACHE_MAX_SIZE)
		return false;
	rcache = ELEMENT(iova_rcache, iovad->rcaches, order);
	cpu_rcache = ELEMENT(iova_cpu_rcache, rcache->cpu_rcaches, cpu->id);
	spin_lock(cpu, &cpu_rcache->lock);
	if (DEREF(iova_magazine, cpu_rcache->loaded)->count == IOVA_MAG_SIZE) {
		if (DEREF(iova_magazine, cpu_rcache->prev)->count < IOVA_MAG_SIZE)
			swap_magazines(cpu_rcache);
		else
			can_insert = swap_in_empty_magazine(cpu, iovad, rcache, cpu_rcache);
	}
	if (can_insert)
		magazine_push(cpu_rcache->loaded, pfn);
	spin_unlock(&cpu_rcache->lock);
	return can_insert;
}

static inline int64_t iova_rcache_get(struct cpu_t *cpu, struct iova_domain *iovad, int64_t size, int64_t limit_pfn)
{
	int64_t order = order_base_2(size);
	struct iova_rcache *rcache;
	struct iova_cpu_rcache *cpu_rcache;
	bool has_pfn = true;
	int64_t pfn = 0;

	if (order >= IOVA_RANGE_CACHE_MAX_SIZE)
		return 0;
	rcache = ELEMENT(iova_rcache, iovad->rcaches, order);
	cpu_rcache = ELEMENT(iova_cpu_rcache, rcache->cpu_rcaches, cpu->id);
	spin_lock(cpu, &cpu_rcache->lock);
	if (DEREF(iova_magazine, cpu_rcache->loaded)->count == 0) {
		if (DEREF(iova_magazine, cpu_rcache->prev)->count > 0)
			swap_magazines(cpu_rcache);
		else
			has_pfn = swap_in_depot_magazine(cpu, iovad, rcache, cpu_rcache);
	}
	if (has_pfn)
		pfn = magazine_pop(cpu_rcache->loaded, limit_pfn - size);
	spin_unlock(&cpu_rcache->lock);
	return pfn;
}

static int64_t alloc_iova_fast(struct cpu_t *cpu, struct iova_domain *iovad, int64_t size, int64_t limit_pfn)
{
	int64_t rounded = size;
	int64_t pfn;

	if (size < 1 << (IOVA_RANGE_CACHE_MAX_SIZE - 1))
		rounded = 1LL << order_base_2(size);
	pfn = iova_rcache_get(cpu, iovad, rounded, limit_pfn + 1);
	if (unlikely(pfn == 0 || iovad->oracle))
		off_the_path();
	return pfn;
}

static void free_iova_fast(struct cpu_t *cpu, struct iova_domain *iovad, int64_t pfn, int64_t size)
{
	if (unlikely(iovad->oracle))
		off_the_path();
	if (unlikely(!iova_rcache_insert(cpu, iovad, pfn, size)))
		off_the_path();
}

/* --- flush queue -------------------------------------------------------------------------------------------------- */

static inline void close_window(struct cpu_t *cpu, int64_t unmapped_at, int64_t flushed_at, int64_t pages)
{
	int64_t window = max(flushed_at - unmapped_at, 0);

	record_value(cpu->exposure_histogram, window);
	cpu->ctrs.exposures++;
	cpu->ctrs.exposure_page_ticks += window * pages;
	cpu->ctrs.exposure_max_ticks = max(cpu->ctrs.exposure_max_ticks, window);
}

static inline bool fq_full(struct iova_fq *fq)
{
	return ((fq->tail + 1) & fq->mod_mask) == fq->head;
}

static inline int32_t fq_ring_add(struct iova_fq *fq)
{
	int32_t idx = fq->tail;

	fq->tail = (idx + 1) & fq->mod_mask;
	return idx;
}

static inline int32_t fq_depth(struct iova_fq *fq)
{
	return (fq->tail - fq->head) & fq->mod_mask;
}

static void fq_ring_free_locked(struct cpu_t *cpu, struct iommu_dma_cookie *cookie, struct iova_fq *fq)
{
	int64_t counter = smp_load_acquire(cookie->fq_flush_finish_cnt.counter);
	int64_t finished_at = read_once(cookie->fq_flush_finished_at);

	while (fq->head != fq->tail) {
		struct iova_fq_entry *entry = ELEMENT(iova_fq_entry, fq->entries, fq->head);

		if (entry->counter >= counter)
			break;
		close_window(cpu, entry->queued_at, finished_at, entry->pages);
		free_iova_fast(cpu, &cookie->iovad, entry->iova_pfn, entry->pages);
		cpu->ctrs.reclaimed++;
		fq->head = (fq->head + 1) & fq->mod_mask;
	}
}

static slow void fq_flush_iotlb(struct cpu_t *cpu, struct iommu_dma_cookie *cookie)
{
	cpu->flush_for = read_once(cookie->fq_abandoned) ? xchg(cookie->fq_abandoned, 0) : 0;
	write_once(cpu->flush_step, FLUSH_COUNTING);
	fetch_add(cookie->fq_flush_start_cnt.counter, 1);
	write_once(cpu->flush_step, FLUSH_UNDER_WAY);
	s390_iommu_flush_iotlb_all(cpu, DEREF(s390_domain, cookie->fq_domain));
	write_once(cookie->fq_flush_finished_at, now_ticks());
	write_once(cpu->flush_step, FLUSH_COUNTING);
	fetch_add(cookie->fq_flush_finish_cnt.counter, 1 + cpu->flush_for);
	write_once(cpu->flush_step, FLUSH_NONE);
}

static slow void flush_full_ring_locked(struct cpu_t *cpu, struct iommu_dma_cookie *cookie, struct iova_fq *fq)
{
	cpu->ctrs.flushes_full++;
	fq_flush_iotlb(cpu, cookie);
	fq_ring_free_locked(cpu, cookie, fq);
	if (unlikely(fq_full(fq)))
		off_the_path();
}

static void queue_iova(struct cpu_t *cpu, struct iommu_dma_cookie *cookie, int64_t iova_pfn, int64_t pages)
{
	struct iova_fq *fq;
	struct iova_fq_entry *entry;
	int32_t depth;

	smp_mb();
	if (cookie->qt == SINGLE_QUEUE)
		fq = DEREF(iova_fq, cookie->single_fq);
	else
		fq = ELEMENT(iova_fq, cookie->percpu_fq, cpu->id);
	spin_lock(cpu, &fq->lock);
	fq_ring_free_locked(cpu, cookie, fq);
	if (fq_full(fq))
		flush_full_ring_locked(cpu, cookie, fq);
	depth = fq_depth(fq);
	fq->total_depth += depth;
	fq->max_depth = max(fq->max_depth, depth + 1);
	fq->queued++;
	entry = ELEMENT(iova_fq_entry, fq->entries, fq_ring_add(fq));
	entry->iova_pfn = iova_pfn;
	entry->pages = pages;
	entry->queued_at = now_ticks();
	entry->counter = read_once(cookie->fq_flush_start_cnt.counter);
	spin_unlock(&fq->lock);
	if (read_once(cookie->fq_timer_on.counter) == 0 && xchg(cookie->fq_timer_on.counter, 1) == 0)
		add_timer(&cookie->fq_timer);
}

/* --- DMA API ------------------------------------------------------------------------------------------------------ */

static inline int64_t iommu_dma_alloc_iova(struct cpu_t *cpu, struct iommu_domain *domain, int64_t pages)
{
	if (domain->dma_limit_pfn >= DMA_32BIT_PFN && unlikely(domain->pci_32bit_workaround))
		off_the_path();
	return alloc_iova_fast(cpu, &domain->cookie.iovad, pages, domain->dma_limit_pfn);
}

static int64_t iommu_dma_map(struct cpu_t *cpu, struct iommu_domain *domain, int64_t phys_pfn, int64_t pages,
			     int64_t nents)
{
	int64_t pfn = iommu_dma_alloc_iova(cpu, domain, pages);

	if (unlikely(pfn == 0))
		return 0;
	if (unlikely(nents > 1))
		off_the_path();
	if (unlikely(!s390_iommu_map_pages(cpu, &domain->s390, pfn, phys_pfn, pages)))
		return 0;
	s390_iommu_iotlb_sync_map(&domain->s390);
	return pfn;
}

static int64_t dma_map(struct cpu_t *cpu, struct iommu_domain *domain, int64_t phys_pfn, int64_t pages, int64_t nents)
{
	int64_t pfn = 0;

	if (unlikely(domain->dma_ops != DMA_IOMMU))
		off_the_path();
	else
		pfn = iommu_dma_map(cpu, domain, phys_pfn, pages, nents);
	if (pfn)
		cpu->ctrs.maps++;
	else
		cpu->ctrs.map_failures++;
	return pfn;
}

static void dma_unmap(struct cpu_t *cpu, struct iommu_domain *domain, int64_t pfn, int64_t pages)
{
	if (unlikely(domain->dma_ops != DMA_IOMMU || read_once(domain->cookie.fq_domain) == 0))
		off_the_path();
	s390_iommu_unmap_pages(cpu, &domain->s390, pfn, pages);
	queue_iova(cpu, &domain->cookie, pfn, pages);
	cpu->ctrs.unmaps++;
}

/* --- the loops, as in tools/bench_hot_path.py --------------------------------------------------------------------- */

int64_t bench_lock(int64_t context, int64_t rounds)
{
	struct cpu_t *cpu = DEREF(cpu_t, context);
	struct iommu_domain *domain = DEREF(iommu_domain, cpu->domain);
	struct iova_fq *fq = DEREF(iova_fq, domain->cookie.single_fq);
	int64_t since_ns = now_ns();

	for (int64_t i = 0; i < rounds; i++) {
		spin_lock(cpu, &fq->lock);
		spin_unlock(&fq->lock);
	}
	return now_ns() - since_ns;
}

int64_t bench_iova(int64_t context, int64_t rounds)
{
	struct cpu_t *cpu = DEREF(cpu_t, context);
	struct iommu_domain *domain = DEREF(iommu_domain, cpu->domain);
	int64_t since_ns = now_ns();

	for (int64_t i = 0; i < rounds; i++) {
		int64_t pfn = alloc_iova_fast(cpu, &domain->cookie.iovad, 1, domain->dma_limit_pfn);

		free_iova_fast(cpu, &domain->cookie.iovad, pfn, 1);
	}
	return now_ns() - since_ns;
}

int64_t bench_ring(int64_t context, int64_t pfns, int64_t batch, int64_t rounds)
{
	struct cpu_t *cpu = DEREF(cpu_t, context);
	struct iommu_domain *domain = DEREF(iommu_domain, cpu->domain);
	int64_t spent_ns = 0, since_ns;

	for (int64_t round = 0; round < rounds; round++) {
		for (int64_t i = 0; i < batch; i++)
			((int64_t *)pfns)[i] = alloc_iova_fast(cpu, &domain->cookie.iovad, 1, domain->dma_limit_pfn);
		since_ns = now_ns();
		for (int64_t i = 0; i < batch; i++)
			queue_iova(cpu, &domain->cookie, ((int64_t *)pfns)[i], 1);
		spent_ns += now_ns() - since_ns;
	}
	return spent_ns;
}

int64_t bench_pair(int64_t context, int64_t rounds)
{
	struct cpu_t *cpu = DEREF(cpu_t, context);
	struct iommu_domain *domain = DEREF(iommu_domain, cpu->domain);
	int64_t since_ns = now_ns();

	for (int64_t i = 0; i < rounds; i++) {
		int64_t since = now_ticks();
		int64_t pfn = dma_map(cpu, domain, (i & 0xFF) + 1, 1, 1);

		record_value(cpu->map_histogram, now_ticks() - since);
		since = now_ticks();
		dma_unmap(cpu, domain, pfn, 1);
		record_value(cpu->unmap_histogram, now_ticks() - since);
	}
	return now_ns() - since_ns;
}
