// The errors of a form: each one beside its field, or listed in the problem if there is no such field.

import { ProblemError } from "../../clients/typescript/src/problems";
import { PROBLEMS, memberName, pointerParts } from "./words";

/** An error for each field that has one, by the name of the field. */
export type FieldErrors = Record<string, string>;

export interface FormErrors {
  fields: FieldErrors;
  labels: string[]; // of the fields with errors
  others: string[]; // errors that belong to no field
}

interface LabelledField {
  name: string;
  label: string;
  pointer?: string; // to its member of the body, if that has another name
}

/** Sort the errors of a problem by field. `body` is the request body: its items contain the line numbers. */
export function formErrors(error: unknown, fields: LabelledField[], body?: unknown): FormErrors {
  const sorted: FormErrors = { fields: {}, labels: [], others: [] };
  if (!(error instanceof ProblemError)) return sorted;
  const { member, detail = "" } = PROBLEMS[error.slug] ?? {};
  for (const one of error.problem.errors ?? (member ? [{ pointer: `#/${member}`, detail }] : [])) {
    const parts = one.pointer ? pointerParts(one.pointer) : [one.parameter ?? ""];
    const field = fields.find((field) => isAbout(parts, field, body));
    if (!field) sorted.others.push(`${memberName(parts)}${one.detail}`);
    else if (!(field.name in sorted.fields)) {
      sorted.fields[field.name] = `${entryName(parts, field, body)}${one.detail}`;
      sorted.labels.push(field.label);
    }
  }
  return sorted;
}

function memberParts({ name, pointer }: LabelledField): string[] {
  return pointer ? pointerParts(pointer) : [name];
}

function isAbout(parts: string[], field: LabelledField, body: unknown): boolean {
  if (parts[0] === "items" && parts.length > 1) return field.name === `line.${valueAt(body, ["items", parts[1] ?? "", "line"])}`;
  return memberParts(field).every((part, index) => part === parts[index]);
}

/** "“gift”: " for an error in one entry of the field, nothing for an error of the whole field. */
function entryName(parts: string[], field: LabelledField, body: unknown): string {
  const value = parts[0] === "items" ? undefined : valueAt(body, parts);
  return parts.length > memberParts(field).length && typeof value === "string" ? `“${value}”: ` : "";
}

function valueAt(document: unknown, parts: string[]): unknown {
  return parts.reduce<unknown>((value, part) => (value as Record<string, unknown> | undefined | null)?.[part], document);
}
