// Memory of the RP2040 as the core sees it: SRAM, and flash behind cache, streaming FIFO and SSI.
//
// The SSI and a W25Q128 behind it are modelled as far as firmware programs them: a wrong command,
// address length or lane count ends the emulation, and the cost of a read follows from the registers:
// (command + address + wait + data clocks) * BAUDR. Parameters, chosen and not measured on a chip:
//   overhead   system clocks a flash access takes beside its serial clocks
//   refill     flash accesses of 32 bits that fill a cache line of 8 bytes
// DMA takes no bus cycles from the core, and a read by DMA comes in one piece at its end.

export function makeFlash({ BasePeripheral, mcu, clock, overhead, refill, quadEnable }) {
  const flash8 = mcu.flash;
  const flash16 = new Uint16Array(flash8.buffer);
  const flash32 = new Int32Array(flash8.buffer);
  const tags = new Int32Array(2048).fill(-1); // 1024 sets of two lines of 8 bytes
  const newest = new Uint8Array(1024);
  const seen = { accesses: 0, hits: 0, refills: 0, stall: 0, bursts: 0, burst_words: 0, burst_cycles: 0 };

  // ---- the flash chip: what it does with a transfer in SPI mode ----
  const chip = {
    status1: 0,
    status2: quadEnable > 0 ? 2 : 0,
    writable: false,
    continuous: false,
    transfer(bytes) {
      const [command, value] = bytes;
      const fill = (v) => bytes.map((_, i) => (i ? v : 0));
      if (command === 0x05) return fill(this.status1);
      if (command === 0x35) return fill(this.status2);
      if (command === 0x06 || command === 0x50) this.writable = true;
      else if (command === 0x31 && this.writable && bytes.length === 2) {
        if (quadEnable >= 0) this.status2 = value;
        this.writable = false;
      }
      return fill(0xff);
    },
  };

  // ---- SSI ----
  class Ssi extends BasePeripheral {
    constructor() {
      super(mcu, 'SSI');
      // As the boot ROM leaves it
      this.reg = { 0x00: 0x001f0300, 0x04: 0, 0x08: 1, 0x10: 1, 0x14: 6, 0x4c: 0, 0xf0: 0, 0xf4: 0x03000218 };
      this.queue = [];
      this.received = [];
      this.running = false;
      this.update();
    }

    get enabled() {
      return this.reg[0x08] & 1;
    }

    // Whether XIP reads deliver what is stored, and what a 32-bit access costs.
    update() {
      const control = this.reg[0xf4];
      const format = (this.reg[0x00] >>> 21) & 3;
      const lanes = format === 2 ? 4 : format === 1 ? 2 : 1;
      const kind = control & 3; // 0: all serial; 1: command serial; 2: none serial
      const address = ((control >>> 2) & 15) * 4;
      const command = [0, 4, 8, 16][(control >>> 8) & 3];
      const wait = (control >>> 11) & 31;
      const mode = control >>> 24;
      const frame = ((this.reg[0x00] >>> 16) & 31) + 1;
      const reads = ((this.reg[0x00] >>> 8) & 3) === 3 && frame === 32;
      const one = this.reg[0x04] === 0 && this.reg[0x4c] === 0;
      const serial = lanes === 1 && command === 8 && address === 24 && wait === 0 && mode === 0x03;
      const quad = lanes === 4 && address === 32 && wait === 4 && chip.status2 & 2;
      const entering = quad && kind === 1 && command === 8;
      const continuing = quad && kind === 2 && command === 0 && mode >>> 4 === 0xa;
      this.entering = entering;
      const right = (serial && !chip.continuous) || (continuing && chip.continuous);
      this.works = Boolean(this.enabled && reads && one && right && !this.running);
      this.burst = Boolean(this.enabled && reads && this.reg[0x4c] & 1 && right);
      this.quad = continuing;
      const perLane = (bits, l) => bits / l;
      const divider = this.reg[0x14] || 1;
      const clocks =
        perLane(command, kind === 2 ? lanes : 1) + perLane(address, kind === 0 ? 1 : lanes) + wait;
      this.more = perLane(frame, lanes) * divider; // a word that needs no address
      this.word = clocks * divider + this.more + overhead;
    }

    // A read of several words into the DMA channel that waits for them.
    start(value) {
      const words = this.reg[0x04] + 1;
      const address = this.quad ? value >>> 8 : value & 0xffffff;
      if (this.quad ? (value & 0xf0) !== 0xa0 : value >>> 24 !== 0x03) {
        throw new Error(`a flash read begins with ${value.toString(16)}`);
      }
      const channel = mcu.dma.channels.find(
        (c) => c.active && c.treqValue === 39 && c.readAddr === 0x18000060,
      );
      if (!channel || channel.transCount !== words || (channel.ctrl & 0x40003c) !== 0x400028) {
        throw new Error('no DMA channel takes the words of a flash read in their order');
      }
      this.running = true;
      this.update();
      const cycles = this.word + (words - 1) * this.more;
      seen.bursts++;
      seen.burst_words += words;
      seen.burst_cycles += cycles;
      const done = clock.createAlarm(() => {
        const to = channel.writeAddr - 0x20000000;
        mcu.sram.set(flash8.subarray(address, address + 4 * words), to);
        channel.writeAddr += 4 * words;
        channel.transCount = 0;
        channel.ctrl &= ~(1 << 24);
        this.running = false;
        this.update();
        mcu.dma.intRaw |= 1 << channel.index;
        mcu.dma.checkInterrupts();
      });
      done.schedule((cycles * 1e9) / mcu.clkSys);
    }

    settle() {
      if (!this.queue.length) return;
      const bytes = this.queue;
      this.queue = [];
      if (this.entering) {
        // Command in one lane, then address and mode bits in four: the chip goes on in that mode.
        chip.continuous = bytes[0] === 0xeb && (bytes[1] & 0xf0) === 0xa0;
        this.received.push(0);
      } else this.received.push(...chip.transfer(bytes.map((b) => b & 0xff)));
    }

    readUint32(offset) {
      switch (offset) {
        case 0x28: // SR: transmit FIFO empty and not full; data when there is some; never busy
          this.settle();
          return 0x06 | (this.received.length ? 8 : 0);
        case 0x20:
          return this.queue.length;
        case 0x24:
          this.settle();
          return this.received.length;
        case 0x60:
          this.settle();
          return this.received.length ? this.received.shift() : 0;
        default:
          return offset in this.reg ? this.reg[offset] : super.readUint32(offset);
      }
    }

    writeUint32(offset, value) {
      if (offset === 0x60) {
        if (this.burst) this.start(value >>> 0);
        else if (this.enabled) this.queue.push(value >>> 0);
        return;
      }
      if (offset !== 0x08 && this.enabled && offset in this.reg && offset !== 0x10) {
        this.warn(`register ${offset.toString(16)} is written while the SSI is on`);
        return;
      }
      if (!(offset in this.reg)) return super.writeUint32(offset, value);
      if (this.running) throw new Error('the SSI is set up anew in the middle of a read');
      if (offset === 0x08 && !(value & 1)) {
        this.settle();
        this.received = [];
      }
      this.reg[offset] = value >>> 0;
      this.update();
    }
  }
  const ssi = new Ssi();

  const memory = {
    ram8: mcu.sram,
    ram16: new Uint16Array(mcu.sram.buffer),
    ram32: new Int32Array(mcu.sram.buffer),
    flash8,
    flash16,
    flash32,
    // Stall of a read of flash, in cycles; tells the cache about it.
    xip(address) {
      seen.accesses++;
      const window = (address >>> 24) & 3;
      const line = (address & 0xffffff) >>> 3;
      const set = line & 1023;
      const slot = set * 2;
      if (window < 2) {
        if (tags[slot] === line) {
          newest[set] = 0;
          seen.hits++;
          return 0;
        }
        if (tags[slot + 1] === line) {
          newest[set] = 1;
          seen.hits++;
          return 0;
        }
      }
      if (!ssi.works) throw new Error('flash is read while the SSI is not set up to read it');
      let cost = ssi.word;
      if ((window & 1) === 0) {
        const way = newest[set] ^ 1;
        tags[slot + way] = line;
        newest[set] = way;
        cost *= refill;
      }
      seen.refills++;
      seen.stall += cost;
      return cost;
    },
    sync(cycles) {
      memory.tick(cycles);
    },
    tick() {},
  };

  // ---- XIP control; its streaming FIFO is not modelled ----
  class Xip extends BasePeripheral {
    readUint32(offset) {
      const values = { 0x00: 3, 0x04: 0, 0x08: 3, 0x0c: seen.hits >>> 0, 0x10: seen.accesses >>> 0 };
      return offset in values ? values[offset] : super.readUint32(offset);
    }
    writeUint32(offset, value) {
      if (offset === 0x04) tags.fill(-1);
      else super.writeUint32(offset, value);
    }
  }
  mcu.peripherals[0x14000] = new Xip(mcu, 'XIP');
  mcu.peripherals[0x18000] = ssi;
  return { memory, seen, ssi, chip, tags };
}
