(** Two more runs on the real line that attain theorems: one that bounces between the ends of an interval, and a chain. *)

From FrankWolfe Require Import setting assumptions lemmas line.

(** [beta x^2/2] on [-r, r], with whole steps from end to end: every gap is [2 beta r^2], and the loss never falls. *)
Definition valley (beta r : R) : Problem line := {|
  K := fun x : line => - r <= x <= r;
  L := fun _ (x : line) => beta * x ^ 2 / 2;
  G := fun _ (x : line) => (beta * x)%R;
  beta := beta;
|}.

Definition bounce (r : R) (t : nat) : R := r * (-1) ^ t.

Definition bounce_run (beta r : R) (n : nat) : Run line := {|
  T := n;
  W := bounce r : nat -> line;
  V := fun t => bounce r (S t);
  eps := fun _ => 0;
  eta := fun _ => 1;
  gap := fun _ => 2 * beta * r ^ 2;
|}.

(** [beta x^2/2] on the whole line, and a chain whose first link leads from [x] to the minimum. *)
Definition bowl (beta : R) : Problem line := {|
  K := fun _ : line => True;
  L := fun _ (x : line) => beta * x ^ 2 / 2;
  G := fun _ (x : line) => (beta * x)%R;
  beta := beta;
|}.

Definition one_link (x : R) (t : nat) : R := match t with S (S _) => 0 | _ => x end.

Definition one_link_run (x : R) (n : nat) : Run line := {|
  T := n;
  W := one_link x : nat -> line;
  V := fun _ => 0;
  eps := fun _ => 0;
  eta := fun _ => 1;
  gap := fun _ => 0;
|}.

(** * Proof *)

(** ** Of the valley *)

Section Bounce.
  Variables (beta r : R) (n : nat).
  Hypotheses (bent : 0 <= beta) (r_positive : 0 < r) (some : (1 <= n)%nat).

  Local Notation P := (valley beta r).
  Local Notation run := (bounce_run beta r n).

  Lemma bounce_is_an_end t : (bounce r t = r /\ bounce r (S t) = - r) \/ (bounce r t = - r /\ bounce r (S t) = r).
  Proof. unfold bounce. induction t as [| t [H | H]]; [left | right | left]; simpl in *; lra. Qed.

  Lemma bounce_in_valley t : K P (bounce r t).
  Proof. simpl. destruct (bounce_is_an_end t); lra. Qed.

  Lemma bounce_setting : Setting P run.
  Proof.
    split; simpl.
    - assumption.
    - intros X Y s (HX & HX') (HY & HY') between. simpl. nra.
    - split; [assumption |]. intros t X Y _ _. simpl. apply Req_le. field.
    - intros t _. split; [apply bounce_in_valley |]. intros Z (HZ & HZ'). unfold gradient. simpl W. simpl V. simpl G.
      assert (0 <= beta * r * (r - Z)) by (apply Rmult_le_pos; [apply Rmult_le_pos |]; lra).
      assert (0 <= beta * r * (r + Z)) by (apply Rmult_le_pos; [apply Rmult_le_pos |]; lra).
      destruct (bounce_is_an_end t) as [(here & there) | (here & there)]; rewrite here, there; simpl; lra.
    - intros t _. exists (bounce r (S t)). split; [apply bounce_in_valley |]. unfold gradient. simpl W. simpl G.
      destruct (bounce_is_an_end t) as [(here & there) | (here & there)]; rewrite here, there; simpl; lra.
  Qed.

  Lemma valley_diameter : Diameter P (2 * r).
  Proof. intros X Y (HX & HX') (HY & HY'). simpl. nra. Qed.

  Lemma bounce_steps : FrankWolfeStep P run false.
  Proof.
    split; [apply bounce_in_valley |]. intros t _. split; [simpl; lra |]. unfold bounce_run. cbn [W V eta]. simpl. ring.
  Qed.

  Lemma bounce_never_falls : decrease P run = 0.
  Proof.
    unfold decrease. cbn [L W T valley bounce_run].
    destruct (bounce_is_an_end 1) as [(-> & _) | (-> & _)], (bounce_is_an_end n) as [(_ & ->) | (_ & ->)]; field.
  Qed.

  Lemma bounce_mean_gap : mean (gap run) (T run) = 2 * beta * r ^ 2.
  Proof. pose proof (horizon_positive n some). unfold mean. cbn [gap T bounce_run]. rewrite sum_constant. field. lra. Qed.
End Bounce.

(** ** Of the bowl *)

Section One_link.
  Variables (beta x : R) (n : nat).
  Hypothesis bent : 0 <= beta.

  Local Notation P := (bowl beta).
  Local Notation run := (one_link_run x n).

  Lemma bowl_is_smooth : Upper_smooth P.
  Proof. split; [assumption |]. intros t X Y _ _. simpl. apply Req_le. field. Qed.

  Lemma one_link_initial_gap : Initial_gap P run (beta * x ^ 2 / 2).
  Proof. intros Z _. simpl. pose proof (Rmult_le_pos _ _ bent (pow2_ge_0 Z)). simpl in *. lra. Qed.

  Lemma every_link_ends_lowest t X : (1 <= t)%nat -> L P t (W run (S t)) <= L P t X.
  Proof.
    intros first. destruct t as [| t]; [lia |]. pose proof (Rmult_le_pos _ _ bent (pow2_ge_0 X)). simpl in *. lra.
  Qed.

  (** The first gradient is [beta x], and all others are 0. *)
  Lemma one_link_mean_square : (1 <= n)%nat -> mean (fun t => (beta * one_link x t) ^ 2) n = (beta * x) ^ 2 / INR n.
  Proof.
    intros some. unfold mean. f_equal. replace n with (S (pred n)) by lia. induction (pred n) as [| m IH]; [simpl; ring |].
    change (sum (fun t => (beta * one_link x t) ^ 2) (S m) + (beta * 0) ^ 2 = (beta * x) ^ 2). rewrite IH. ring.
  Qed.
End One_link.
