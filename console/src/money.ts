// Amounts are whole numbers of minor units, never fractions.

import type { Item } from "./types";

// ISO 4217: currencies whose minor unit is not a hundredth. Intl follows CLDR, which differs for some.
const EXPONENTS: Record<string, number> = {};
for (const code of "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF".split(" ")) EXPONENTS[code] = 0;
for (const code of "BHD IQD JOD KWD LYD OMR TND".split(" ")) EXPONENTS[code] = 3;

const whole = new Intl.NumberFormat("en", { useGrouping: true });

export function exponent(currency: string | null): number {
  return EXPONENTS[currency ?? ""] ?? 2;
}

/** 123456 EUR → "1,234.56". */
export function amount(minor: number, currency: string | null): string {
  const places = exponent(currency);
  const digits = String(Math.abs(minor)).padStart(places + 1, "0");
  const units = whole.format(BigInt(digits.slice(0, digits.length - places)));
  const fraction = places ? `.${digits.slice(-places)}` : "";
  return `${minor < 0 ? "−" : ""}${units}${fraction}`;
}

/** 123456 EUR → "1,234.56 EUR". */
export function money(minor: number | null, currency: string | null): string {
  if (minor === null) return "—";
  return currency ? `${amount(minor, currency)} ${currency}` : amount(minor, currency);
}

/** The remaining total of a line, by the rule of `totals.cancelled`: the price of cancelled units is rounded down. */
export function remainingTotal({ total, cancelled, quantity }: Item): number | null {
  if (total === null || !cancelled) return total;
  return total - Number((BigInt(total) * BigInt(cancelled)) / BigInt(quantity));
}

/** A typed amount, with a decimal point or comma, in minor units; null if it is no amount of this currency. */
export function parseAmount(text: string, currency: string | null): number | null {
  const places = exponent(currency);
  const match = /^(\d{1,13})(?:[.,](\d*))?$/.exec(text.trim());
  const fraction = match?.[2] ?? "";
  if (!match || fraction.length > places) return null;
  return Number(`${match[1]}${fraction.padEnd(places, "0")}`);
}

/** An amount as a user would type it: 123456 EUR → "1234.56". */
export function editableAmount(minor: number, currency: string | null): string {
  return amount(minor, currency).replaceAll(",", "");
}
