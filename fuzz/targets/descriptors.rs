//! A client that writes arbitrary bytes over everything it can write, at any time, while the daemon's side does its turns.
//!
//! The input is a sequence of steps, some the client's and some the daemon's. The daemon's side must neither panic nor
//! give out a tensor that lies outside the arena, and each request that it took is completed once.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rota_ipc::region::Regions;
use rota_ipc::server::{Connection, Poisoned, Record, RequestBlock, check_submission};
use rota_ipc::wire::{
    BLOCK_BYTES, Completion, DESCRIPTOR_BYTES, DType, OP_BEGIN, OP_CANCEL, OP_FINISH, OP_GIVE_UP, OP_INFER,
    OutputRecord, Submission,
};
use std::sync::atomic::Ordering;

const SLOTS: u32 = 8;
const ARENA_BYTES: u64 = 4096;

fuzz_target!(|data: &[u8]| {
    let (connection, [client, daemon, arena, doorbell]) = Connection::create(SLOTS, ARENA_BYTES).expect("memory");
    let regions = Regions::open(SLOTS, ARENA_BYTES, &[client, daemon, arena]).expect("memory");
    let mut run = Run { steps: Steps(data), connection, regions, held: Vec::new(), block: RequestBlock::default() };
    // A poisoned client is disconnected, which ends the run.
    let _: Result<(), Poisoned> = run.all();
    drop(doorbell);
});

/// The rest of the input, read as numbers; zeros when it is used up.
struct Steps<'a>(&'a [u8]);

impl Steps<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }
}

struct Run<'a> {
    steps: Steps<'a>,
    connection: Connection,
    /// The client's mapping.
    regions: Regions,
    /// Requests that were taken and not completed.
    held: Vec<Submission>,
    block: RequestBlock,
}

impl Run<'_> {
    fn all(&mut self) -> Result<(), Poisoned> {
        while !self.steps.0.is_empty() {
            match self.steps.byte() % 10 {
                0 => self.write_anywhere(),
                1 | 2 => self.submit(),
                3 => self.write_block(),
                4 => {
                    let cursor = self.cursor();
                    self.regions.completions().head.store(cursor, Ordering::Relaxed);
                }
                5 => {
                    let cursor = self.cursor();
                    self.regions.submissions().tail.store(cursor, Ordering::Relaxed);
                }
                6 => {
                    let how = u32::from(self.steps.byte());
                    self.regions.completions().need_wake.store(how, Ordering::Relaxed);
                }
                7 => self.take()?,
                8 => self.complete_one(),
                _ => self.sleep()?,
            }
        }
        Ok(())
    }

    /// Small numbers half of the time: others are refused at once.
    fn cursor(&mut self) -> u32 {
        let byte = self.steps.byte();
        if byte & 1 == 0 { u32::from(byte >> 1) } else { self.steps.word() as u32 }
    }

    /// One word of the client region, whatever lies there.
    fn write_anywhere(&mut self) {
        let (slot, word) = (self.steps.byte() as u32 % SLOTS, usize::from(self.steps.byte()));
        let value = self.steps.word();
        match self.steps.byte() % 2 {
            0 => self.regions.block(slot)[word % (BLOCK_BYTES / 8)].store(value, Ordering::Relaxed),
            _ => {
                let slots = self.regions.submissions().slots;
                slots[word % slots.len()].0[slot as usize % (DESCRIPTOR_BYTES / 8)].store(value, Ordering::Relaxed);
            }
        }
    }

    /// A submission of a block, most often with the size that the block's header asks for, at the client's tail.
    fn submit(&mut self) {
        let ring = self.regions.submissions();
        let tail = ring.tail.load(Ordering::Relaxed);
        let slot = u32::from(self.steps.byte() % 9);
        let choice = self.steps.byte();
        let header = self.regions.block(slot % SLOTS)[0].load(Ordering::Relaxed).to_le_bytes();
        let block_bytes = match choice {
            0..32 => u64::from(choice) * 32,
            _ => 64 * (1 + u64::from(header[0]) + u64::from(header[1])),
        };
        let op = if choice.is_multiple_of(16) { choice / 16 } else { OP_INFER };
        let words = &ring.slots[tail as usize % ring.slots.len()].0;
        words[0].store(u64::from(op) | u64::from(slot) << 32, Ordering::Relaxed);
        words[1].store(block_bytes, Ordering::Relaxed);
        ring.tail.store(tail.wrapping_add(1), Ordering::Release);
    }

    /// A request block that is right but for where its tensors lie; other steps spoil the rest of it.
    fn write_block(&mut self) {
        let block = self.regions.block(u32::from(self.steps.byte()) % SLOTS);
        let (inputs, outputs) = (1 + self.steps.byte() % 3, self.steps.byte() % 4);
        let header = [u64::from(inputs) | u64::from(outputs) << 8 | 1 << 16 | 1 << 32, 1, 0, 0, 0, 0, 0, 0];
        for (word, value) in block.iter().zip(header) {
            word.store(value, Ordering::Relaxed);
        }
        for tensor in 0..inputs + outputs {
            let (offset, bytes) = (u64::from(self.steps.byte()) * 32, u64::from(self.steps.byte()) * 4);
            let (rank, dims) = if tensor < inputs { (1, bytes / 4) } else { (0, 0) };
            let record = [offset, bytes, DType::F32 as u64 | rank << 8, dims, 0, 0, 0, 0];
            for (word, value) in block[8 * usize::from(tensor + 1)..].iter().zip(record) {
                word.store(value, Ordering::Relaxed);
            }
        }
    }

    fn take(&mut self) -> Result<(), Poisoned> {
        let mut submissions = [Submission::default(); 4];
        let count = self.connection.pop(&mut submissions)?;
        for submission in &submissions[..count] {
            // What is never answered.
            if [OP_CANCEL, OP_BEGIN, OP_FINISH, OP_GIVE_UP].contains(&submission.op) {
                continue;
            }
            self.connection.reserve(self.held.len() as u32)?;
            let checked = check_submission(submission, SLOTS)
                .and_then(|()| self.connection.read_block(submission.slot, submission.block_bytes, &mut self.block));
            match checked {
                Ok(()) => {
                    self.check_block();
                    self.held.push(*submission);
                }
                Err(error) => {
                    assert!(!error.text.is_empty());
                    let completion = Completion { slot: submission.slot, ..Completion::default() };
                    self.connection.complete(completion, Record::Text(&error.text));
                }
            }
        }
        Ok(())
    }

    fn check_block(&self) {
        assert!(self.block.header.items >= 1 && (1..=8).contains(&self.block.sessions().len()));
        for tensor in self.block.inputs().iter().chain(self.block.outputs()) {
            let end = tensor.offset.checked_add(tensor.bytes).expect("no overflow");
            assert!(end as u64 <= ARENA_BYTES && tensor.offset.is_multiple_of(64));
        }
        for tensor in self.block.inputs() {
            let elements: u128 = tensor.dims().iter().map(|dim| u128::from(*dim)).product();
            assert_eq!(elements * tensor.dtype.bytes() as u128, tensor.bytes as u128);
        }
        for (index, output) in self.block.outputs().iter().enumerate() {
            for other in self.block.inputs().iter().chain(&self.block.outputs()[..index]) {
                let disjoint = output.offset >= other.end() || other.offset >= output.end();
                assert!(disjoint || output.bytes == 0 || other.bytes == 0);
            }
        }
    }

    fn complete_one(&mut self) {
        let Some(submission) = self.held.pop() else { return };
        let completion = Completion { slot: submission.slot, tag: submission.tag, ..Completion::default() };
        let outputs = [OutputRecord::default(); 21];
        let count = usize::from(self.steps.byte()) % (outputs.len() + 1);
        self.connection.complete(completion, Record::Outputs(&outputs[..count]));
        if self.steps.byte() & 1 == 1 {
            self.connection.publish();
        }
    }

    fn sleep(&mut self) -> Result<(), Poisoned> {
        self.connection.publish();
        let _ = self.connection.arm()?;
        assert!(self.connection.drain_doorbell(), "the client is still there");
        self.connection.disarm();
        Ok(())
    }
}
